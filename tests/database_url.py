"""Where the database of this test run is, for a child process that shall use the same."""

from __future__ import annotations

import os

from django.db import connection


def database_url() -> str:
    """The DATABASE_URL of the test database: what the run was given, with the test's own name."""
    name = connection.settings_dict["NAME"]
    if connection.vendor != "postgresql":
        return f"sqlite:///{name}"
    server, mark, options = os.environ["DATABASE_URL"].partition("?")
    return f"{server.rpartition('/')[0]}/{name}{mark}{options}"
