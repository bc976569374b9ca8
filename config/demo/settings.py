"""The demo's settings: Pennypost's own, with the bounce mailbox that was chosen."""

from __future__ import annotations

import json
import os
from typing import Any

from config.settings import *  # noqa: F403
from config.settings import BOUNCES as USUAL_BOUNCES
from config.settings import DELIVERY as USUAL_DELIVERY

if "DEMO_MAILBOX" in os.environ:
    BOUNCES = USUAL_BOUNCES | {"MAILBOXES": {"default": json.loads(os.environ["DEMO_MAILBOX"])}}

if "DEMO_PROVIDER" in os.environ:
    _providers: dict[str, Any] = {**USUAL_DELIVERY["PROVIDERS"]}  # type: ignore[dict-item]
    _providers["default"] = json.loads(os.environ["DEMO_PROVIDER"])
    DELIVERY = USUAL_DELIVERY | {"PROVIDERS": _providers}
