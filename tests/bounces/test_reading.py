"""The public door: read_bounce, explain, and the command that prints it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from bounces.detectors.base import IncomingMail
from bounces.reading import explain, read_bounce, read_whole
from bounces.report import BounceReport
from tests.bounces.samples import FOLDER, raw_sample


class FromJson:
    """A custom detector as a third party writes it."""

    def detect(self, mail: IncomingMail) -> list[BounceReport] | None:
        if mail.message.get_content_type() != "application/x-bounce":
            return None
        recipient, status = str(mail.message.get_payload()).split()
        return [BounceReport(recipient, "failed", status, status == "5.1.1", "")]


class Raising:
    def detect(self, mail: IncomingMail) -> list[BounceReport] | None:
        raise ZeroDivisionError("oh")


class Nonsense:
    def detect(self, mail: IncomingMail) -> object:
        return ["ada@example.net"]


def use(settings, *detectors: type) -> None:
    paths = [f"{detector.__module__}.{detector.__qualname__}" for detector in detectors]
    settings.BOUNCES = settings.BOUNCES | {"DETECTORS": paths + settings.BOUNCES["DETECTORS"]}


def test_a_bounce_is_read() -> None:
    (report,) = read_bounce(raw_sample("postfix-user-unknown"))
    assert report == BounceReport(
        recipient="ada@example.net",
        action="failed",
        status="5.1.1",
        hard=True,
        diagnostic="smtp; 550 5.1.1 <ada@example.net>: Recipient address rejected: "
        "User unknown in virtual mailbox table",
        original_recipient="ada@example.net",
        final_recipient="ada@example.net",
        remote_mta="dns; mx2.example.net",
        envelope_id="",
        message_id="<aeaaaaaaaaagxxnvodkxvxqs.7@news.example.org>",
    )


def test_the_returned_headers_give_the_message_id_too() -> None:
    raw = raw_sample("postfix-user-unknown").replace(b"message/rfc822", b"text/rfc822-headers")
    assert read_bounce(raw)[0].message_id == "<aeaaaaaaaaagxxnvodkxvxqs.7@news.example.org>"


def test_no_bounce_is_an_empty_list() -> None:
    assert read_bounce(b"") == read_bounce(raw_sample("receipt")) == []


def test_a_custom_detector_is_asked_in_its_order(settings) -> None:
    use(settings, FromJson)
    raw = b"Content-Type: application/x-bounce\n\nada@example.net 5.1.1"
    assert read_bounce(raw) == [BounceReport("ada@example.net", "failed", "5.1.1", True, "")]
    assert len(read_bounce(raw_sample("exim-says-nothing"))) == 1


@pytest.mark.parametrize("detector", [Raising, Nonsense])
def test_a_detector_that_fails_is_passed_over_and_named(settings, detector: type) -> None:
    use(settings, detector)
    explanation = explain(raw_sample("postfix-user-unknown"))
    assert explanation.answers[0].error
    assert explanation.answer is explanation.answers[1]
    assert len(read_bounce(raw_sample("postfix-user-unknown"))) == 1


def test_an_explanation_says_which_detector_answered_and_why() -> None:
    text = "\n".join(explain(raw_sample("sendmail-two-groups-and-one-delivered")).lines())
    assert "DeliveryStatusDetector: mine, 2 reported" in text
    assert "alan@example.edu: failed 5.1.1, hard: 5.1.1: the address does not exist" in text
    assert "Action is “relayed”: no final failure" in text
    assert "class=soft hard=no" in text


def test_an_explanation_of_a_delay_says_that_nobody_bounced() -> None:
    lines = explain(raw_sample("postfix-delayed")).lines()
    assert lines[-1] == "Nobody bounced: nobody is marked."


def test_the_command_explains_a_file() -> None:
    (path,) = FOLDER.glob("*-exchange-access-denied.eml")
    out = io.StringIO()
    call_command("explain_bounce", str(path), stdout=out)
    assert "linus@contoso.example: action=failed status=5.4.1 class=soft hard=no" in out.getvalue()


def test_the_command_reads_standard_input(monkeypatch) -> None:
    raw = raw_sample("a-letter-of-a-reader")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    out = io.StringIO()
    call_command("explain_bounce", "-", stdout=out)
    assert "No detector knows this mail" in out.getvalue()


def test_a_file_that_is_not_there_is_a_clear_message(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="cannot be read: No such file"):
        call_command("explain_bounce", str(tmp_path / "nothing.eml"))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("=?iso-8859-1?Q?Unzustellbar=3A_Gr=FC=DFe?=", "Unzustellbar: Grüße"),
        ("=?utf-8?B?0J3QtQ==?= =?utf-8?B?INC00L7RgdGC0LDQstC70LXQvdC+?=", "Не доставлено"),
        ("=?no-such-charset?Q?x?=", "=?no-such-charset?Q?x?="),
        ("=?utf-8?Q?=00=1B[2J_gone?=", "[2J gone"),
    ],
)
def test_a_subject_is_kept_as_people_read_it(written: str, read: str) -> None:
    raw = f"Subject: {written}\nFrom: {written} <a@b.example>\n\nx\n".encode()
    reading = read_whole(raw)
    assert reading.subject == read
    assert reading.sender == f"{read} <a@b.example>"


def test_a_terminal_is_not_commanded_by_a_mail() -> None:
    raw = raw_sample("postfix-user-unknown").replace(b"User unknown", b"\x1b]0;pwned\x07\x9b31m")
    assert all(line.replace("\n", "").isprintable() for line in explain(raw).lines())


def test_a_terminal_is_not_commanded_by_the_reasons_of_a_detector() -> None:
    raw = raw_sample("postfix-user-unknown")
    assert b"multipart/report;" in raw
    lines = explain(raw.replace(b"multipart/report;", b"multipart/report\x1b[2J;")).lines()
    assert "in multipart/report" in "".join(lines)
    assert all(line.replace("\n", "").isprintable() for line in lines)
