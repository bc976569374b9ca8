"""The demo's settings: Pennypost's own, with the bounce mailbox that was chosen."""

from __future__ import annotations

import json
import os

from config.settings import *  # noqa: F403
from config.settings import BOUNCES as USUAL_BOUNCES

if "DEMO_MAILBOX" in os.environ:
    BOUNCES = USUAL_BOUNCES | {"MAILBOXES": {"default": json.loads(os.environ["DEMO_MAILBOX"])}}
