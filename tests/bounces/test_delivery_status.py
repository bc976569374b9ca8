"""Which status parts speak for their mail, beyond what the samples show."""

from __future__ import annotations

from bounces.reading import read_bounce
from tests.bounces.conftest import group, report


def test_a_container_that_declares_another_kind_of_report_is_left_to_its_detector() -> None:
    raw = report(group())
    assert len(read_bounce(raw)) == 1
    for kind in (b"disposition-notification", b"Feedback-Report", b"tlsrpt"):
        assert read_bounce(raw.replace(b"=delivery-status", b"=" + kind)) == []


def test_a_digest_holds_other_peoples_mail_even_when_a_daemon_sends_it() -> None:
    raw = report(group())
    assert read_bounce(raw.replace(b"multipart/report", b"multipart/digest")) == []


def test_a_byte_order_mark_does_not_hide_the_first_field() -> None:
    content_type = b'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\n'
    raw = report(group()).replace(content_type, b"")
    assert read_bounce(raw) == []
    for mark in (b"\xef\xbb\xbf", b"From daemon Sat Nov 21 10:00:00 2026\n\xef\xbb\xbf", b"\r\n"):
        assert len(read_bounce(mark + content_type + raw)) == 1


def test_returned_headers_that_ran_into_the_status_part_name_nobody() -> None:
    # The boundary before the returned copy is lost, and the copy is a bounce itself.
    raw = report(group("ada@example.net")).replace(
        b"--b\nContent-Type: text/rfc822-headers\n\n",
        b"Message-ID: <lost@news.example.org>\nFrom: MAILER-DAEMON@else.example\n\n"
        + group("innocent@example.net").encode()
        + b"\n",
    )
    (bounce,) = read_bounce(raw)
    assert (bounce.recipient, bounce.message_id) == (
        "ada@example.net",
        "<lost@news.example.org>",
    )


def test_no_more_recipients_are_reported_than_a_page_can_show() -> None:
    flood = [group(f"reader{number}@example.net") for number in range(150)]
    assert len(read_bounce(report(*flood))) == 100


def test_of_two_groups_about_one_recipient_the_softer_one_counts() -> None:
    soft = group(status="5.2.2", diagnostic="smtp; 552 5.2.2 full")
    for groups in ((group(), soft), (soft, group())):
        (bounce,) = read_bounce(report(*groups))
        assert (bounce.status, bounce.hard) == ("5.2.2", False)


def test_the_envelope_id_of_the_sender_is_kept() -> None:
    raw = report(group()).replace(
        b"Reporting-MTA:", b"Original-Envelope-Id: QQ314159\nReporting-MTA:"
    )
    assert read_bounce(raw)[0].envelope_id == "QQ314159"


def test_each_of_several_status_parts_is_read() -> None:
    second = b"--b\nContent-Type: message/delivery-status\n\n" + group("bob@example.net").encode()
    raw = report(group()).replace(
        b"--b\nContent-Type: text/rfc822", second + b"--b\nContent-Type: text/rfc822"
    )
    assert [bounce.recipient for bounce in read_bounce(raw)] == [
        "ada@example.net",
        "bob@example.net",
    ]


def test_a_boundary_is_guessed_in_a_report_only() -> None:
    """What a person encloses behind a wrong boundary stays a person's mail."""
    raw = report(group()).replace(b'boundary="b"', b'boundary="lost"')
    assert len(read_bounce(raw)) == 1
    assert read_bounce(raw.replace(b"multipart/report", b"multipart/mixed")) == []
