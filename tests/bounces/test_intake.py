"""One mail in: stored, read, and what follows from it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from threading import Barrier

import pytest
from django.core import mail as outbox
from django.db import OperationalError, connection
from django.utils import timezone

from bounces import intake
from bounces.detectors.base import IncomingMail
from bounces.intake import Fetched, examine_again, forget_raw, store, take_in
from bounces.models import Bounce, Kind, ReceivedMail, Verdict
from bounces.reading import read_whole
from bounces.reading_process import ReadingProcess
from bounces.report import BounceReport, ComplaintReport
from bounces.tasks import keep_house
from campaigns.models import CampaignTotals, Suppression
from campaigns.states import SuppressionReason
from campaigns.tokens import Purpose
from delivery.message_ids import note_assigned
from delivery.models import Delivery
from delivery.outcomes import Accepted, Phase, Reply
from delivery.states import DeliveryStatus
from tests.bounces.conftest import Deliver, group, message_id, report, return_path, token
from tests.bounces.hostile import HOSTILE
from tests.bounces.samples import raw_sample

pytestmark = pytest.mark.django_db


def take(raw: bytes, now: datetime, uid: str = "1") -> Verdict:
    with ReadingProcess(read_whole) as reader:
        return take_in("default", "v", [Fetched(uid, raw)], now, reader)[0]


def again(now: datetime) -> Verdict:
    with ReadingProcess(read_whole) as reader:
        return examine_again(ReceivedMail.objects.get(), now, reader)


def totals(letter: Delivery) -> dict[str, int]:
    counts = CampaignTotals.of([letter.campaign_id])[letter.campaign_id]
    return {name: count for name, count in counts.items() if count}


def suppressed() -> set[str]:
    return set(Suppression.in_force().values_list("address_key", flat=True))


def test_a_hard_bounce_moves_the_letter_and_suppresses_the_reader(deliver: Deliver, now) -> None:
    letter = deliver("Ada@example.net")
    assert take(report(delivered_to=return_path(letter)), now) is Verdict.BOUNCE
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.BOUNCED
    assert totals(letter) == {"eligible": 1, "bounced": 1}
    bounce = Bounce.objects.get()
    assert (bounce.delivery, bounce.campaign_id) == (letter, letter.campaign_id)
    assert (bounce.bounce_class, bounce.status) == ("hard", "5.1.1")
    assert bounce.counted and bounce.suppressed
    suppression = Suppression.objects.get()
    assert suppression.address_key == "ada@example.net"
    assert suppression.reason == SuppressionReason.HARD_BOUNCE
    assert str(bounce.pk) in suppression.source
    assert suppression.evidence == "smtp; 550 5.1.1 unknown user"


@pytest.mark.parametrize(
    ("status", "diagnostic", "expected"),
    [
        ("5.2.2", "smtp; 552 5.2.2 mailbox full", "soft"),
        ("4.4.7", "smtp; delivery expired", "soft"),
        ("5.7.1", "smtp; 554 5.7.1 blocked", "blocked"),
        ("5.0.0", "smtp; 550 no", "undetermined"),
    ],
)
def test_every_other_final_failure_moves_the_letter_and_suppresses_nobody(
    status, diagnostic, expected, deliver: Deliver, now
) -> None:
    letter = deliver()
    raw = report(group(status=status, diagnostic=diagnostic), delivered_to=return_path(letter))
    assert take(raw, now) is Verdict.BOUNCE
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.BOUNCED
    assert totals(letter) == {"eligible": 1, "bounced": 1}
    assert Bounce.objects.get().bounce_class == expected
    assert suppressed() == set()


def test_an_unconfirmed_letter_that_bounces_had_arrived(deliver: Deliver, now) -> None:
    letter = deliver(status=DeliveryStatus.UNCONFIRMED)
    take(report(delivered_to=return_path(letter)), now)
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.BOUNCED
    assert totals(letter) == {"eligible": 1, "bounced": 1}


def test_a_test_letter_bounces_without_being_counted(deliver: Deliver, now) -> None:
    letter = deliver(is_test=True)
    take(report(delivered_to=return_path(letter)), now)
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.BOUNCED
    assert totals(letter) == {}


@pytest.mark.parametrize("action", ["delayed", "delivered", "relayed", "expanded"])
def test_what_is_no_failure_marks_nobody(action: str, deliver: Deliver, now) -> None:
    letter = deliver()
    raw = report(group(action=action), delivered_to=return_path(letter))
    assert take(raw, now) is Verdict.NOTHING
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.SENT
    assert not Bounce.objects.exists()


def test_the_reader_of_the_token_is_suppressed_and_not_the_address_named(deliver, now) -> None:
    # Ada's address forwards to a mailbox that is gone; we never wrote to that one.
    letter = deliver("ada@example.net")
    raw = report(group("al@hosting.example"), delivered_to=return_path(letter))
    take(raw, now)
    assert suppressed() == {"ada@example.net"}
    bounce = Bounce.objects.get()
    assert (bounce.recipient, bounce.address_key) == ("al@hosting.example", "ada@example.net")


def test_an_alias_with_one_mailbox_that_may_live_is_not_suppressed(deliver: Deliver, now) -> None:
    letter = deliver("team@example.net")
    raw = report(
        group("gone@example.net"),
        group("full@example.net", status="5.2.2", diagnostic="smtp; 552 5.2.2 full"),
        delivered_to=return_path(letter),
    )
    take(raw, now)
    assert suppressed() == set()
    assert Bounce.objects.filter(delivery=letter, counted=True).count() == 2


def test_what_is_said_of_the_reader_decides_and_not_what_is_said_of_others(deliver, now) -> None:
    letter = deliver("ada@example.net")
    raw = report(
        group("stranger@example.net", status="5.2.2", diagnostic="smtp; 552 5.2.2 full"),
        group("ADA@example.net"),
        delivered_to=return_path(letter),
    )
    take(raw, now)
    assert suppressed() == {"ada@example.net"}
    assert list(Bounce.objects.order_by("id").values_list("counted", flat=True)) == [False, True]


def test_a_bounce_without_a_token_is_kept_and_marks_nobody(deliver: Deliver, now) -> None:
    letter = deliver("ada@example.net")
    assert take(report(group("ada@example.net")), now) is Verdict.BOUNCE
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.SENT
    bounce = Bounce.objects.get()
    assert bounce.delivery is None and not bounce.counted and not bounce.suppressed
    assert ReceivedMail.objects.get().remark == "no token of ours"
    assert suppressed() == set()


def test_t12_forged_foreign_old_and_replayed_tokens_change_nobody(deliver: Deliver, now) -> None:
    sent = deliver("sent@example.net")
    old = deliver("old@example.net", ago=timedelta(days=60))
    bounced = deliver("bounced@example.net", status=DeliveryStatus.BOUNCED)
    foreign = token(Purpose.RETURN_PATH, sent.pk, key="theirs")
    wrong_purpose = token(Purpose.MESSAGE_ID, sent.pk)
    before = list(Delivery.objects.order_by("id").values_list("id", "status"))
    for number, address in enumerate(
        [
            f"bounce+{foreign}@bounces.example.org",
            f"bounce+{wrong_purpose}@bounces.example.org",
            f"bounce+{'a' * 24}@bounces.example.org",
            return_path(old),
            return_path(bounced),
        ]
    ):
        raw = report(group("sent@example.net"), delivered_to=address)
        assert take(raw, now, uid=str(number)) is Verdict.BOUNCE
    assert list(Delivery.objects.order_by("id").values_list("id", "status")) == before
    assert suppressed() == set()
    assert not Bounce.objects.filter(counted=True).exists()


def test_the_same_report_in_two_mails_counts_once(deliver: Deliver, now) -> None:
    letter = deliver()
    raw = report(delivered_to=return_path(letter))
    take(raw, now, uid="1")
    take(raw, now, uid="2")
    assert totals(letter) == {"eligible": 1, "bounced": 1}
    assert list(Bounce.objects.order_by("id").values_list("counted", flat=True)) == [True, False]


def test_the_mail_that_comes_second_in_a_race_suppresses_nobody(monkeypatch, deliver, now) -> None:
    letter = deliver()
    monkeypatch.setattr(intake, "mark_all_bounced", lambda delivery_ids: set())
    assert take(report(delivered_to=return_path(letter)), now) is Verdict.BOUNCE
    assert suppressed() == set()
    assert not Bounce.objects.get().counted


def test_a_reader_whose_suppression_was_lifted_is_not_suppressed_by_a_replay(deliver, now) -> None:
    letter = deliver()
    raw = report(delivered_to=return_path(letter))
    take(raw, now, uid="1")
    Suppression.objects.get().lift(now=now)
    take(raw, now, uid="2")
    assert suppressed() == set()


def test_the_same_mail_fetched_twice_is_one_mail(deliver: Deliver, now) -> None:
    letter = deliver()
    raw = report(delivered_to=return_path(letter))
    assert take(raw, now) is take(raw, now) is Verdict.BOUNCE
    assert ReceivedMail.objects.count() == Bounce.objects.count() == 1


def test_an_address_that_was_suppressed_before_keeps_its_first_reason(deliver, now) -> None:
    letter = deliver()
    Suppression.add(letter.rcpt_to, SuppressionReason.MANUAL, source="a person")
    take(report(delivered_to=return_path(letter)), now)
    assert Suppression.objects.get().reason == SuppressionReason.MANUAL
    assert not Bounce.objects.get().suppressed


def test_a_report_quicker_than_the_worker_waits_for_its_letter(deliver: Deliver, now) -> None:
    letter = deliver(status=DeliveryStatus.SENDING)
    assert take(report(delivered_to=return_path(letter)), now) is Verdict.WAITING
    assert not Bounce.objects.exists()
    mail = ReceivedMail.objects.get()
    assert again(now) is Verdict.WAITING
    Delivery.objects.filter(pk=letter.pk).update(status=DeliveryStatus.SENT)
    mail.refresh_from_db()
    assert again(now) is Verdict.BOUNCE
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.BOUNCED


def test_a_message_id_is_enough_where_the_provider_sets_the_envelope(deliver, now) -> None:
    letter = deliver()
    take(report(returned=message_id(letter)), now)
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.BOUNCED


def test_22_the_message_id_that_the_provider_gave_is_enough_too(deliver: Deliver, now) -> None:
    letter, other = deliver(), deliver("eve@example.net")
    reply = Reply(Phase.FINAL_DOT, 250, "2.0.0 OK")
    note_assigned([(letter.pk, Accepted(reply, "<new@prod.example>")), (other.pk, Accepted(reply))])
    assert take(report(returned="<new@prod.example>"), now) is Verdict.BOUNCE
    letter.refresh_from_db()
    other.refresh_from_db()
    assert letter.status == DeliveryStatus.BOUNCED
    assert other.status == DeliveryStatus.SENT


def test_a_mail_that_nobody_knows_is_kept_for_a_person(db, now) -> None:
    assert take(raw_sample("a-letter-of-a-reader"), now) is Verdict.UNRECOGNISED
    mail = ReceivedMail.objects.get()
    assert bytes(mail.raw) == raw_sample("a-letter-of-a-reader")
    assert mail.subject == "Thank you"


def test_a_mail_that_is_too_long_is_cut_and_still_read(settings, deliver: Deliver, now) -> None:
    settings.BOUNCES = settings.BOUNCES | {"LARGEST_MAIL_BYTES": 16 * 1024}
    letter = deliver()
    raw = report(delivered_to=return_path(letter)) + b"x" * 100_000
    assert take(raw, now) is Verdict.BOUNCE
    mail = ReceivedMail.objects.get()
    assert mail.truncated and len(mail.raw) == 16 * 1024


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_t13_hostile_mail_is_taken_in_and_marks_nobody(raw: bytes, deliver: Deliver, now) -> None:
    letter = deliver("a@example.org")
    assert take(raw, now) in {Verdict.BOUNCE, Verdict.NOTHING, Verdict.UNRECOGNISED}
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.SENT
    assert suppressed() == set()


def test_hostile_text_in_a_genuine_report_can_be_stored(deliver: Deliver, now) -> None:
    letter = deliver()
    raw = report(
        group(diagnostic="smtp; 550 5.1.1 \0\x1b[31m\u202e<script>alert(1)</script>"),
        delivered_to=return_path(letter),
    ).replace(b"Subject: Undelivered", b"Subject: \xff\xfe\x00")
    assert take(raw, now) is Verdict.BOUNCE
    assert "<script>" in Bounce.objects.get().diagnostic
    assert Bounce.objects.get().diagnostic.isprintable()


class Raising:
    def detect(self, mail: IncomingMail) -> None:
        raise RecursionError("too deep")


class Complaining:
    def detect(self, mail: IncomingMail) -> list[ComplaintReport] | None:
        if "complaint" not in mail.header("subject"):
            return None
        return [ComplaintReport("", "abuse")]


class Overlong:
    """A custom detector that cleans nothing."""

    def detect(self, mail: IncomingMail) -> list[BounceReport]:
        return [
            BounceReport(
                "a" * 1000 + "@x\0y", "failed" * 20, "5.1.1" * 9, True, "\udcff\0" + "z" * 9000
            )
        ]


def use(settings, *detectors: type) -> None:
    paths = [f"{detector.__module__}.{detector.__qualname__}" for detector in detectors]
    settings.BOUNCES = settings.BOUNCES | {"DETECTORS": paths + settings.BOUNCES["DETECTORS"]}


def test_a_detector_that_raises_is_passed_over(settings, deliver: Deliver, now, caplog) -> None:
    use(settings, Raising)
    letter = deliver()
    assert take(report(delivered_to=return_path(letter)), now) is Verdict.BOUNCE
    assert ReceivedMail.objects.get().detector.endswith("DeliveryStatusDetector")
    assert "bounces.detector_failed" in caplog.messages


def test_what_a_custom_detector_says_is_made_fit_to_be_stored(settings, db, now) -> None:
    use(settings, Overlong)
    assert take(b"Subject: x\n\n", now) is Verdict.BOUNCE
    assert Bounce.objects.get().recipient.startswith("aaa")


def test_a_complaint_suppresses_and_leaves_the_letter_as_sent(settings, deliver, now) -> None:
    use(settings, Complaining)
    letter = deliver()
    raw = f"Delivered-To: {return_path(letter)}\nSubject: a complaint\n\n".encode()
    assert take(raw, now) is Verdict.BOUNCE
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.SENT
    assert Suppression.objects.get().reason == SuppressionReason.COMPLAINT
    assert Bounce.objects.get().kind == Kind.COMPLAINT


def test_a_mail_that_cannot_be_examined_is_kept_and_nothing_of_it_is_done(
    monkeypatch, deliver: Deliver, now
) -> None:
    def break_off(*args: object, **kwargs: object) -> None:
        raise ValueError("in the middle")

    letter = deliver()
    monkeypatch.setattr(intake.Suppression, "add_many", break_off)
    assert take(report(delivered_to=return_path(letter)), now) is Verdict.FAILED
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.SENT
    assert totals(letter) == {"eligible": 1, "sent": 1}
    assert not Bounce.objects.exists()
    mail = ReceivedMail.objects.get()
    assert (mail.verdict, mail.remark) == (Verdict.FAILED, "ValueError: in the middle")


def test_a_database_out_of_order_is_not_the_mails_fault(monkeypatch, deliver, now) -> None:
    def lost(*args: object) -> None:
        raise OperationalError("the connection is lost")

    letter = deliver()
    monkeypatch.setattr(intake, "correlate_all", lost)
    with pytest.raises(OperationalError):
        take(report(delivered_to=return_path(letter)), now)
    monkeypatch.undo()
    assert take(report(delivered_to=return_path(letter)), now) is Verdict.BOUNCE


def test_a_mail_that_keeps_killing_its_examiner_is_given_up(deliver: Deliver, now, monkeypatch):
    letter = deliver()
    fetched = [Fetched("1", report(delivered_to=return_path(letter)))]
    before, (mail,) = store("default", "v", fetched, now)
    assert before == set()

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(intake, "examine", killed)
    with ReadingProcess(read_whole) as reader:
        for _ in range(intake.MOST_EXAMINATIONS - 1):
            with pytest.raises(KeyboardInterrupt):
                examine_again(mail, now, reader)
            mail.refresh_from_db()
        assert examine_again(mail, now, reader) is Verdict.FAILED


def test_raw_mail_is_forgotten_after_its_retention(settings, deliver: Deliver, now) -> None:
    settings.BOUNCES = settings.BOUNCES | {"RAW_RETENTION_DAYS": 30}
    take(report(), now - timedelta(days=31), uid="old")
    take(report(), now - timedelta(days=29), uid="new")
    assert forget_raw(now) == 1
    assert ReceivedMail.objects.get(uid="old").raw is None
    assert ReceivedMail.objects.get(uid="new").raw is not None
    assert Bounce.objects.count() == 2
    assert forget_raw(now) == 0


def test_house_keeping_forgets_all_that_is_due_however_many(
    settings, monkeypatch, deliver: Deliver, now
) -> None:
    settings.BOUNCES = settings.BOUNCES | {"RAW_RETENTION_DAYS": 30}
    monkeypatch.setattr(intake, "FORGOTTEN_AT_ONCE", 2)
    for number in range(5):
        take(report(), timezone.now() - timedelta(days=31), uid=f"old {number}")
    assert keep_house() == "5 mails forgotten"
    assert not ReceivedMail.objects.filter(raw__isnull=False).exists()


def test_t14_no_mail_is_ever_answered(deliver: Deliver, now) -> None:
    for number in range(20):
        take(raw_sample("auto-reply-that-quotes-550"), now, uid=f"a{number}")
        take(raw_sample("postfix-user-unknown"), now, uid=f"b{number}")
    assert outbox.outbox == []


def test_logs_name_letters_and_never_readers(deliver: Deliver, now, caplog) -> None:
    letter = deliver("pii-canary@example.net")
    caplog.set_level("DEBUG")
    take(report(group("pii-canary@example.net"), delivered_to=return_path(letter)), now)
    assert "bounces.marked" in caplog.messages
    assert all("pii-canary" not in str(vars(record)) for record in caplog.records)


@pytest.mark.django_db(transaction=True)
def test_ten_reports_at_the_same_moment_count_once(deliver: Deliver, now) -> None:
    letter = deliver()
    raw = report(delivered_to=return_path(letter))
    start = Barrier(10)

    def take_in_together(number: int) -> Verdict:
        start.wait()
        try:
            # Five mails, each fetched by two pollers.
            return take(raw, now, uid=str(number % 5))
        finally:
            connection.close()

    with ThreadPoolExecutor(10) as threads:
        verdicts = list(threads.map(take_in_together, range(10)))
    assert set(verdicts) == {Verdict.BOUNCE}
    assert ReceivedMail.objects.count() == Bounce.objects.count() == 5
    assert Bounce.objects.filter(counted=True).count() == 1
    assert Bounce.objects.filter(suppressed=True).count() == 1
    assert totals(letter) == {"eligible": 1, "bounced": 1}
