"""``manage.py check`` refuses every wrong BOUNCES setting with an id of its own, and a hint."""

from __future__ import annotations

from typing import Any

import pytest

from bounces.checks import check_bounce_settings
from bounces.conf import DEFAULT_DETECTORS, bounce_settings, read_settings
from bounces.detectors.base import IncomingMail

MAILDIR = "bounces.mailboxes.maildir.MaildirMailbox"
DETECTOR = DEFAULT_DETECTORS[0]


class WithoutDetect:
    pass


class WithArguments:
    def __init__(self, server: str) -> None: ...

    def detect(self, mail: IncomingMail) -> None: ...


def mailbox(**entry: Any) -> dict[str, Any]:
    return {"MAILBOXES": {"default": entry}}


WRONG: dict[str, list[Any]] = {
    "bounces.E001": ["bounces", None, ["MAILBOXES"]],
    "bounces.E002": [{"MAILBOX": {}}, {"SURPRISE": 1}],
    "bounces.E003": [{"MAILBOXES": [MAILDIR]}, {"MAILBOXES": "default"}],
    "bounces.E004": [{"MAILBOXES": {name: {}}} for name in ("", "x" * 61, 1)],
    "bounces.E005": [mailbox(), mailbox(BACKEND=None), {"MAILBOXES": {"default": MAILDIR}}],
    "bounces.E006": [mailbox(BACKEND=MAILDIR, OPTIONS={"path": "x"}, PATH="x")],
    "bounces.E007": [mailbox(BACKEND="bounces.nowhere.Mailbox"), mailbox(BACKEND="nonsense")],
    "bounces.E008": [mailbox(BACKEND="pathlib.Path")],
    "bounces.E009": [mailbox(BACKEND=MAILDIR, OPTIONS=options) for options in (["path"], {1: 2})],
    "bounces.E010": [
        mailbox(BACKEND=MAILDIR),
        mailbox(BACKEND=MAILDIR, OPTIONS={"path": "x", "server": "y"}),
    ],
    "bounces.E011": [mailbox(BACKEND=MAILDIR, OPTIONS={"path": path}) for path in ("", 1)],
    "bounces.E012": [{"DETECTORS": []}, {"DETECTORS": DETECTOR}, {"DETECTORS": {}}],
    "bounces.E013": [{"RAW_RETENTION_DAYS": value} for value in (0, -1, "90", 1.5, True, 10**6)],
    "bounces.E014": [{"LARGEST_MAIL_BYTES": value} for value in (0, 1000, "1M", 10**12)],
    "bounces.E015": [
        {"DETECTORS": ["bounces.nowhere.Detector"]},
        {"DETECTORS": [7]},
        {"DETECTORS": ["math.pi"]},
        {"DETECTORS": [f"{__name__}.WithoutDetect"]},
        {"DETECTORS": [f"{__name__}.WithArguments"]},
    ],
    "bounces.E016": [{"DETECTORS": [DETECTOR, DETECTOR]}],
    "bounces.E017": [{"SOFT_BOUNCES": value} for value in (0, "3", True)],
    "bounces.E018": [{"SOFT_BOUNCE_CAMPAIGNS": value} for value in (0, 1001)],
    "bounces.E019": [{"SOFT_BOUNCE_DAYS": value} for value in (-1, 1.5)],
    "bounces.E020": [{"MOST_FORGED_A_DAY": value} for value in (0, "many")],
    "bounces.E022": [
        {"NOTIFICATION_URL": value}
        for value in (
            7,
            "news.example.org",
            "http://news.example.org",
            "https://news.example.org/path",
            "https://",
            "https://[2001:db8::1",
        )
    ],
    "bounces.E021": [{"SOFT_BOUNCES": 6}, {"SOFT_BOUNCE_CAMPAIGNS": 2}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("number", "wrong"),
    [(number, wrong) for number, cases in WRONG.items() for wrong in cases],
    ids=repr,
)
def test_a_wrong_setting_has_an_id_and_a_hint(number: str, wrong: Any, settings) -> None:
    settings.BOUNCES = wrong
    errors = [message for message in check_bounce_settings() if message.is_serious()]
    assert [message.id for message in errors] == [number]
    assert all(message.hint for message in errors)


def test_right_settings_pass(settings) -> None:
    assert check_bounce_settings() == []


def test_a_near_miss_is_guessed(settings) -> None:
    settings.BOUNCES = {"DETECTOR": []}
    assert check_bounce_settings()[0].hint == "Is DETECTORS meant?"


def test_bounces_without_a_return_path_are_refused(settings) -> None:
    settings.DELIVERY = settings.DELIVERY | {"RETURN_PATH": ""}
    assert [message.id for message in check_bounce_settings()] == ["bounces.E101"]


def test_a_mailbox_that_sends_needs_no_return_path_of_ours(settings) -> None:
    identity = {"tenant_id": "1", "client_id": "2", "client_secret": "3"}
    options = {"mailbox": "news@contoso.example", "identity": identity}
    graph = {"PROFILE": "microsoft365-graph", "OPTIONS": options}
    settings.DELIVERY = {"PROVIDERS": {"default": graph}}
    assert check_bounce_settings() == []
    relay = {"BACKEND": "delivery.providers.smtp.SMTPProvider", "OPTIONS": {"host": "relay"}}
    settings.DELIVERY = {"PROVIDERS": {"default": graph, "other": relay}}
    assert [message.id for message in check_bounce_settings()] == ["bounces.E101"]


def test_nobody_reading_bounces_is_a_warning(settings) -> None:
    settings.BOUNCES = {}
    assert [message.id for message in check_bounce_settings()] == ["bounces.W101"]


def test_one_wrong_detector_does_not_silence_the_others() -> None:
    understood, problems = read_settings({"DETECTORS": ["bounces.nowhere.Detector", DETECTOR]})
    assert understood.detectors == (DETECTOR,)
    assert len(problems) == 1


def test_settings_are_read_once_and_again_when_they_change(settings) -> None:
    before = bounce_settings()
    assert bounce_settings() is before
    settings.BOUNCES = {"LARGEST_MAIL_BYTES": 20_000}
    assert bounce_settings().largest_mail_bytes == 20_000


def test_secrets_in_options_are_not_printed() -> None:
    understood, _problems = read_settings(mailbox(BACKEND=MAILDIR, OPTIONS={"path": "hush"}))
    assert "hush" not in repr(understood)
