"""What the documents say about names, settings and files is so."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bounces.conf
import campaigns.checks
import delivery.conf
from bounces.mailboxes.graph import GraphMailbox
from bounces.mailboxes.imap import IMAPMailbox
from bounces.mailboxes.maildir import MaildirMailbox
from bounces.mailboxes.pop3 import POP3Mailbox
from config import settings as default_settings
from delivery.profiles import PROFILE_KEYS
from delivery.providers.maildir import MaildirProvider
from delivery.providers.smtp import SMTPProvider
from tests.documentation.documents import DOCS, DOCUMENTS, ROOT, blocks

SETTINGS = DOCS / "settings.md"
SETTINGS_FILE = Path(default_settings.__file__).read_text("utf-8")
VARIABLES = set(
    re.findall(
        r'(?:environ(?:\.get)?[(\[]|flag\(|words\(|number\()\s*"([A-Z][A-Z_]+)"', SETTINGS_FILE
    )
) | {"DATABASE_URL"}
KEYS = {
    "CAMPAIGNS": set(campaigns.checks._KNOWN),
    "DELIVERY": {*delivery.conf._SIMPLE, *delivery.conf._OTHERS},
    "GUARD_RAILS": {*delivery.conf._RATES, *delivery.conf._COUNTS},
    "PROVIDERS": {"BACKEND", "OPTIONS", "LIMITS", *PROFILE_KEYS},
    "BOUNCES": set(bounces.conf.KNOWN_KEYS),
}
WITH_OPTIONS = [
    SMTPProvider,
    MaildirProvider,
    MaildirMailbox,
    IMAPMailbox,
    POP3Mailbox,
    GraphMailbox,
]
FOR_TESTS = {"transport", "clock", "dice"}


def first_cells(document: Path) -> set[str]:
    """What stands as code in the first column of the document's tables."""
    rows = re.findall(r"(?m)^\| (`[^|]*)\|", document.read_text("utf-8"))
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


@pytest.mark.parametrize("block", KEYS)
def test_every_key_of_the_settings_is_explained(block):
    assert KEYS[block] <= first_cells(SETTINGS)


def test_every_environment_variable_is_explained_and_no_other():
    told = {name for name in first_cells(SETTINGS) if name in VARIABLES}
    assert told == VARIABLES


@pytest.mark.parametrize("backend", WITH_OPTIONS)
def test_every_option_of_our_own_backends_is_explained(backend):
    assert set(inspect.signature(backend).parameters) - FOR_TESTS <= first_cells(SETTINGS)


def test_the_environment_files_set_only_what_the_settings_read():
    for document in DOCUMENTS:
        for block in blocks(document, "ini"):
            if "[" not in block:  # a systemd unit has sections
                names = set(re.findall(r"(?m)^([A-Z_]+)=", block))
                assert names - {"DJANGO_SETTINGS_MODULE"} <= VARIABLES, document.name


def own_settings() -> list[str]:
    return [
        block
        for document in DOCUMENTS
        for block in blocks(document, "python")
        if "from config.settings import *" in block
    ]


def test_the_settings_modules_of_the_documents_pass_the_checks(tmp_path):
    assert own_settings()
    for number, block in enumerate(own_settings()):
        (tmp_path / f"own_settings_{number}.py").write_text(block, "utf-8")
        done = subprocess.run(
            [sys.executable, "manage.py", "check", "--fail-level", "WARNING"],
            cwd=ROOT,
            env=os.environ
            | {
                "DJANGO_SETTINGS_MODULE": f"own_settings_{number}",
                "PYTHONPATH": str(tmp_path),
                "PENNYPOST_VAR": str(tmp_path / "var"),
                "SECRET_KEY": "a key of this test alone",
                "RELAY_PASSWORD": "secret",
                "MICROSOFT_CLIENT_SECRET": "secret",
                "BASE_URL": "https://news.example.org",
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_of_ours_leads_somewhere(document):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", document.read_text("utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_of_ours_that_is_named_exists(document):
    text = document.read_text("utf-8")
    ours = {path.stem for path in ROOT.glob("*/management/commands/*.py")}
    django = {"migrate", "check", "createsuperuser", "qcluster", "shell", "makemigrations"}
    django |= {"dumpdata", "loaddata"}
    assert set(re.findall(r"manage\.py (\w+)", text)) <= ours | django
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8")))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
