"""The settings of the processes that test_killed_sender.py starts: Graph at its emulator."""

import os

from config.settings import *  # noqa: F403
from config.settings import DELIVERY as USUAL

MAILBOX = "news@example.org"
IDENTITY = {"tenant_id": "contoso", "client_id": "app", "client_secret": "right"}

DELIVERY = USUAL | {
    "PROVIDERS": USUAL["PROVIDERS"]
    | {
        "graph": {
            "PROFILE": "microsoft365-graph",
            "OPTIONS": {
                "mailbox": MAILBOX,
                "identity": IDENTITY,
                "emulator": os.environ.get("GRAPH_EMULATOR", "http://127.0.0.1:1"),
            },
            # In real time 28 a minute would take minutes, and is not what this test is about.
            "LIMITS": [],
        }
    },
}
