"""The Graph provider against the emulator: which answer, whose trouble; scenarios 1 to 17."""
# ruff: noqa: F811 (a fixture that is imported)

import asyncio
import base64
import json
from datetime import timedelta

import httpx
import pytest

from delivery.outcomes import Accepted, Deferred, Phase, Rejected, Unavailable, Unconfirmed
from delivery.providers import graph
from delivery.providers.graph import GraphProvider
from delivery.replies.graph import RULES, TOTAL_SILENCE, Reaction, read_error, rule_for
from tests.contracts.provider import ProviderContract
from tests.delivery.conftest import Clock
from tests.delivery.graph_world import MAILBOX, World, letter, world  # noqa: F401
from tests.emulators.graph import Answer, Fault, expired_token, parsed

TOO_MANY = {"error": {"code": "TooManyRequests", "message": "Please retry again later."}}


# ------------------------------------------------------------------ 1, 2: acceptance


def test_01_plain_success_takes_one_request_and_the_exact_bytes(world):
    (outcome,) = world.send(letter())
    assert isinstance(outcome, Accepted)
    assert outcome.reply.code == 202
    assert outcome.reply.phase is Phase.HTTP
    assert "request-" in outcome.reply.text
    (sent,) = world.emulator.delivered
    assert sent.content == letter().content
    assert sent.message_id == letter().message_id
    assert len(world.emulator.requests("users/")) == 1


def test_each_attempt_has_an_id_of_its_own_and_microsoft_echoes_it(world):
    seen = []

    def note(request):
        seen.append(request.headers["client-request-id"])
        return httpx.Response(202)

    provider = world.provider(transport=httpx.MockTransport(note))
    world.send(letter(1), letter(2), provider=provider)
    assert len(set(seen)) == 2


def test_02_a_202_is_acceptance_even_with_retry_after(world):
    world.emulator.faults = [
        Fault("sendMail", Answer(202, headers={"retry-after": "30"}), done=True)
    ]
    outcomes = world.send(letter(1), letter(2))
    assert [type(outcome) for outcome in outcomes] == [Accepted, Accepted]
    assert len(world.emulator.requests("sendMail")) == 2


# ------------------------------------------------------------------ 3: concurrency


def test_03_mailbox_concurrency_halves_what_is_under_way_and_uses_no_attempt(world):
    provider = world.provider()
    provider._mailbox.at_once = 3
    world.emulator.faults = [
        Fault(
            "sendMail",
            Answer.error(
                429,
                "ApplicationThrottled",
                "Application is over its MailboxConcurrency limit.",
                retry_after="1",
            ),
        )
    ]
    (outcome,) = world.send(letter(), provider=provider)
    assert isinstance(outcome, Unavailable)
    assert outcome.rule == "mailbox concurrency"
    assert timedelta(seconds=1) <= outcome.retry_after <= timedelta(seconds=1.2)
    assert provider.concurrency == 1
    world.clock.advance(seconds=2)
    (outcome,) = world.send(letter(), provider=provider)
    assert isinstance(outcome, Accepted)


def test_03_it_begins_with_one_request_and_rises_to_three_in_clean_time(world):
    provider = world.provider()
    widths = []
    for _ in range(16):
        world.send(letter(len(widths) + 1), provider=provider)
        widths.append(provider.concurrency)
        world.clock.advance(minutes=6)
    # One until an hour was clean, then one more for ten clean minutes, and never more.
    assert widths[:10] == [1] * 10
    assert widths[10:] == [2, 2, 3, 3, 3, 3]


def test_03_never_more_requests_under_way_than_now_allowed(world):
    world.emulator.latency = 0.002
    provider = world.provider()
    provider._mailbox.at_once = 2
    outcomes = world.send_at_once(*(letter(n) for n in range(12)), provider=provider)
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert world.emulator.mailboxes[MAILBOX].most_in_flight == 2


# ------------------------------------------------------------------ 4, 5: Retry-After


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ({"Retry-After": "7"}, 7, 8.4),
        ({"Retry-After": "2.128"}, 2.128, 2.56),
        ({"retry-after": "5"}, 5, 6),
        (
            {
                "Retry-After": "Sat, 21 Nov 2026 18:05:00 GMT",
                "Date": "Sat, 21 Nov 2026 18:00:00 GMT",
            },
            300,
            360,
        ),
        ({"Retry-After": "Sat, 21 Nov 2026 10:05:00 GMT"}, 300, 360),
        ({"Retry-After": "0"}, 1, 1),
        ({"Retry-After": "999999"}, 86400, 86400),
    ],
)
def test_04_retry_after_is_never_cut_short(world, header, least, most):
    world.emulator.faults = [Fault("sendMail", Answer(429, json.dumps(TOO_MANY).encode(), header))]
    (outcome,) = world.send(letter())
    assert isinstance(outcome, Unavailable)
    assert least <= outcome.retry_after.total_seconds() <= most


@pytest.mark.parametrize(
    "header", [{}, {"retry-after": "-3"}, {"retry-after": "abc"}, {"retry-after": "nan"}]
)
def test_04_without_a_retry_after_that_means_something_our_own_growing_pause_holds(world, header):
    world.emulator.faults = [Fault("sendMail", Answer(429, json.dumps(TOO_MANY).encode(), header))]
    (outcome,) = world.send(letter())
    assert isinstance(outcome, Unavailable)
    assert outcome.retry_after is None


def test_05_after_a_full_window_the_rest_of_the_wave_touches_nothing(world):
    world.emulator.faults = [
        Fault("sendMail", Answer.error(429, "TooManyRequests", "", retry_after="387"))
    ]
    outcomes = world.send(*(letter(n) for n in range(5)))
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
    assert all(outcome.retry_after >= timedelta(seconds=387) for outcome in outcomes)
    assert len(world.emulator.requests("sendMail")) == 1


def test_05_over_the_upload_volume_we_rest_five_minutes(world):
    text = "Application is over its IncomingBytes limit."
    world.emulator.faults = [Fault("sendMail", Answer.error(429, "ApplicationThrottled", text))]
    (outcome,) = world.send(letter())
    assert outcome.retry_after == timedelta(minutes=5)


def test_05_the_strict_emulator_refuses_the_10001st_request_in_ten_minutes(world):
    world.emulator.mailboxes[MAILBOX].requests.extend([world.clock()] * 10_000)
    world.clock.advance(minutes=3, seconds=33)
    (outcome,) = world.send(letter())
    assert isinstance(outcome, Unavailable)
    assert outcome.retry_after >= timedelta(seconds=387)
    assert not world.emulator.delivered


# ------------------------------------------------------------------ 6, 8, 9: doubts


DOUBTS = [
    pytest.param(
        Answer.error(503, "CommandConcurrencyLimitReached", "Command Concurrency Limit Reached"),
        id="503 command",
    ),
    pytest.param(Answer.error(503, "ErrorDirectoryConcurrencyLimit"), id="503 directory"),
    pytest.param(Answer.error(503, "MailboxInfoStale"), id="503 moving"),
    pytest.param(Answer.error(503, "SystemMemoryProtectionUtilizationMonitor"), id="503 memory"),
    pytest.param(Answer.error(504, "UnknownError", ""), id="504"),
    pytest.param(Answer.error(500, "ErrorInternalServerError"), id="500"),
    pytest.param(Answer(502, b"<html>"), id="502"),
    pytest.param(httpx.ReadTimeout, id="time-out"),
    pytest.param(httpx.RemoteProtocolError, id="closed"),
    pytest.param(httpx.ReadError, id="reset"),
    pytest.param(httpx.WriteError, id="reset while writing"),
]


def doubtful(answer, done):
    if isinstance(answer, Answer):
        return Fault("sendMail", answer, done=done)
    return Fault("sendMail", drop=answer, done=done)


@pytest.mark.parametrize("answer", DOUBTS)
@pytest.mark.parametrize("done", [True, False], ids=["sent", "not sent"])
def test_06_08_09_after_these_answers_the_letter_is_in_doubt_and_never_sent_again_by_itself(
    world, answer, done
):
    world.emulator.faults = [doubtful(answer, done)]
    first, second = world.send(letter(1), letter(2))
    assert isinstance(first, Unconfirmed)
    assert first.rests
    # One doubt, not a wave of them: what follows is certainly not sent.
    assert isinstance(second, Unavailable)
    assert len(world.emulator.requests("sendMail")) == 1
    world.clock.advance(minutes=2)
    found = world.confirm(letter(1))
    assert isinstance(found, Accepted) if done else found is None
    assert len(world.emulator.delivered) == done


@pytest.mark.parametrize(
    "code", ["CommandConcurrencyLimitReached", "ErrorDirectoryConcurrencyLimit"]
)
def test_06_command_concurrency_means_fewer_requests_at_once(world, code):
    provider = world.provider()
    provider._mailbox.at_once = 3
    world.emulator.faults = [Fault("sendMail", Answer.error(503, code))]
    world.send(letter(), provider=provider)
    assert provider.concurrency == 1


def test_08_a_letter_on_its_way_stands_in_drafts_and_is_not_called_lost(world):
    world.emulator.visible_after = timedelta(seconds=90)
    world.emulator.faults = [Fault("sendMail", Answer.error(504, "UnknownError"), done=True)]
    world.send(letter())
    world.clock.advance(seconds=30)
    early = world.confirm(letter())
    assert isinstance(early, Unconfirmed)
    assert early.rule == "in drafts"
    world.clock.advance(seconds=90)
    assert isinstance(world.confirm(letter()), Accepted)


@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ConnectTimeout])
def test_09_what_could_not_connect_had_not_left(world, error):
    world.emulator.faults = [Fault("sendMail", drop=error)]
    (outcome,) = world.send(letter())
    assert isinstance(outcome, Unavailable)
    assert outcome.reply.phase is Phase.CONNECT
    assert not outcome.needs_a_person


def test_09_where_sent_items_may_not_be_read_nothing_is_proven_and_sending_goes_on(world):
    world.emulator.may_read = False
    world.emulator.faults = [Fault("sendMail", drop=httpx.ReadTimeout, done=True)]
    provider = world.provider()
    world.send(letter(1), provider=provider)
    found = world.confirm(letter(1), provider)
    assert isinstance(found, Unavailable)
    assert found.rule == "cannot look"
    assert found.needs_a_person
    assert isinstance(world.send(letter(2), provider=provider)[0], Accepted)


def test_the_moment_before_the_request_is_reported_for_the_flight_recorder(world):
    noted = []
    provider = world.provider()
    provider.watch(
        lambda reference: noted.append((reference, len(world.emulator.requests("sendMail"))))
    )
    world.send(letter(7), provider=provider)
    assert noted == [(7, 0)]


# ------------------------------------------------------------------ 7: total silence


@pytest.mark.parametrize(
    ("status", "code"), [(429, "ErrorTooManyObjectsOpened"), (500, "ErrorMoveCopyFailed")]
)
def test_07_total_silence_is_35_minutes_without_any_request(world, status, code):
    world.emulator.faults = [Fault("sendMail", Answer.error(status, code, retry_after="1"))]
    provider = world.provider()

    async def run():
        await provider.open()
        first = await provider.send(letter(1))
        before = len(world.emulator.journal)
        world.clock.advance(minutes=20)
        second = await provider.send(letter(2))
        found = await provider.confirm(letter(1))
        kept = await provider.copy_of(letter(1), "sentitems", "Hello")
        assert len(world.emulator.journal) == before
        world.clock.advance(minutes=15, seconds=1)
        third = await provider.send(letter(2))
        await provider.close()
        return first, second, found, kept, third

    first, second, found, kept, third = asyncio.run(run())
    assert isinstance(first, Unavailable)
    assert first.rule == "total silence"
    assert first.retry_after == TOTAL_SILENCE
    assert isinstance(second, Unavailable)
    assert second.retry_after == timedelta(minutes=15)
    assert isinstance(found, Unavailable)
    assert kept is None
    assert isinstance(third, Accepted)


def test_07_a_naive_client_that_keeps_trying_never_recovers(world):
    """That the emulator is strict: each try begins the silence anew."""
    world.silence_may_be_broken = True
    mailbox = world.emulator.mailboxes[MAILBOX]
    mailbox.silent_until = world.clock() + timedelta(minutes=30)
    for _ in range(20):
        world.clock.advance(minutes=5)
        (outcome,) = world.send(letter())
        assert isinstance(outcome, Unavailable)
    world.clock.advance(minutes=36)
    (outcome,) = world.send(letter())
    assert isinstance(outcome, Accepted)


# ------------------------------------------------------------------ 10: size


def large(size, *, attachments=()):
    head = (
        (
            f"From: <{MAILBOX}>\r\nTo: <reader1@example.org>\r\n"
            "Message-ID: <1@news.example.org>\r\nSubject: Large\r\nList-Unsubscribe: <https://news.example.org/"
        ).encode()
        + b"u" * 200
        + b">\r\nMIME-Version: 1.0\r\n"
    )
    if not attachments:
        return head + b"\r\n" + (b"x" * 74 + b"\r\n") * (size // 76)
    parts = b"--b\r\nContent-Type: text/plain\r\n\r\nGood day.\r\n"
    for name, content in attachments:
        encoded = base64.encodebytes(content).replace(b"\n", b"\r\n")
        parts += (
            b"--b\r\nContent-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n"
            b'Content-Disposition: attachment; filename="' + name + b'"\r\n\r\n' + encoded
        )
    return head + b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n' + parts + b"--b--\r\n"


def test_10_200_instead_of_202_is_looked_up_and_then_accepted(world):
    world.emulator.faults = [Fault("sendMail", Answer(200), done=True)]
    first, second = world.send(letter(1), letter(2))
    assert isinstance(first, Unconfirmed)
    assert isinstance(second, Accepted)
    world.clock.advance(seconds=5)
    assert isinstance(world.confirm(letter(1)), Accepted)


def test_10_a_letter_of_text_that_is_too_large_is_refused_without_a_request(world):
    (outcome,) = world.send(letter(content=large(4_000_000)))
    assert isinstance(outcome, Unavailable)
    assert outcome.needs_a_person
    assert outcome.rule == "letter too large"
    assert world.emulator.requests("users/") == []


def test_10_a_413_stops_before_the_second_reader(world):
    world.emulator.faults = [Fault("sendMail", Answer(413, b"<html>"))]
    outcomes = world.send(letter(1), letter(2))
    assert all(isinstance(o, Unavailable) and o.needs_a_person for o in outcomes)
    assert len(world.emulator.requests("sendMail")) == 1


def test_10_large_attachments_go_by_an_upload_session_in_order_and_without_a_token(world):
    report, flyer = bytes(range(256)) * 28_000, b"small" * 100_000
    content = large(0, attachments=[(b"report.pdf", report), (b"flyer.pdf", flyer)])
    (outcome,) = world.send(letter(content=content))
    assert isinstance(outcome, Accepted)
    (sent,) = world.emulator.delivered
    assert sent.content.partition(b"\r\n\r\n")[0] == content.partition(b"\r\n\r\n")[0]
    kept = {a["name"]: a["content"] for a in world.emulator.attached(MAILBOX)}
    inside = {
        part.get_filename(): part.get_content() for part in parsed(sent.content).iter_attachments()
    }
    assert kept | inside == {"report.pdf": report, "flyer.pdf": flyer}
    puts = world.emulator.requests("PUT")
    assert len(puts) == 3
    assert not any(entry.has_token for entry in puts)


def test_10_a_break_while_uploading_sent_nothing(world):
    content = large(0, attachments=[(b"report.pdf", b"r" * 4_000_000)])
    world.emulator.faults = [Fault("PUT", drop=httpx.ReadTimeout)]
    (outcome,) = world.send(letter(content=content))
    assert isinstance(outcome, Unavailable)
    assert not outcome.needs_a_person


# ------------------------------------------------------------------ 11 to 13: who we are


def test_11_an_expired_token_is_renewed_once_for_all_who_wait(world):
    provider = world.provider()
    world.send(letter(1), provider=provider)
    world.emulator.revoked = set(world.emulator.tokens)
    provider._mailbox.at_once = 3
    outcomes = world.send_at_once(*(letter(n) for n in range(2, 5)), provider=provider)
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert len(world.emulator.requests("POST /contoso.example/oauth2")) == 2


def test_11_a_second_401_stops(world):
    world.emulator.faults = [Fault("sendMail", expired_token(), times=2)]
    outcomes = world.send(letter(1), letter(2))
    assert all(isinstance(o, Unavailable) and o.needs_a_person for o in outcomes)
    assert len(world.emulator.requests("sendMail")) == 2


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'{"error": "text"}', b"\xff"])
def test_11_a_401_needs_no_body(world, body):
    world.emulator.faults = [Fault("sendMail", Answer(401, body))]
    (outcome,) = world.send(letter())
    assert isinstance(outcome, Accepted)


def test_11_a_claims_challenge_reaches_the_token_endpoint(world):
    claims = '{"access_token":{"nbf":{"essential":true}}}'
    challenge = base64.b64encode(claims.encode()).decode()
    world.emulator.faults = [
        Fault(
            "sendMail",
            Answer.error(
                401,
                "InvalidAuthenticationToken",
                www_authenticate=f'Bearer error="insufficient_claims", claims="{challenge}"',
            ),
        )
    ]
    asked = []
    identity = world.identity()

    class Listening:
        async def token(self, scope, *, refused="", claims=""):
            asked.append(claims)
            return await identity.token(scope, refused=refused, claims=claims)

    (outcome,) = world.send(letter(), provider=world.provider(token_source=Listening()))
    assert isinstance(outcome, Accepted)
    assert asked == ["", claims]


@pytest.mark.parametrize(
    ("code", "text", "word"),
    [
        (
            "ErrorAccessDenied",
            "Access to OData is disabled: [RAOP] : Blocked by tenant configured AppOnly"
            " AccessPolicy settings.",
            "service principal",
        ),
        ("ErrorAccessDenied", "Access is denied. Check credentials and try again.", "Mail.Send"),
        ("ErrorSendAsDenied", "Cannot submit message.", "From address"),
    ],
)
def test_13_what_is_forbidden_stops_at_the_first_and_says_what_to_do(world, code, text, word):
    world.emulator.faults = [Fault("sendMail", Answer.error(403, code, text), times=9)]
    outcomes = world.send(*(letter(n) for n in range(5)))
    assert all(isinstance(o, Unavailable) and o.needs_a_person for o in outcomes)
    assert word in outcomes[0].reply.text
    assert len(world.emulator.requests("sendMail")) == 1


def test_13_a_foreign_from_address_is_send_as_denied_by_the_emulator_too(world):
    (outcome,) = world.send(letter(sender="chief@contoso.example"))
    assert outcome.rule == "send as denied"


# ------------------------------------------------------------------ 14, 15: 404 and 400


@pytest.mark.parametrize(
    "code", ["MailboxNotEnabledForRESTAPI", "mailboxNotSupportedForRestApi", "ErrorInvalidUser"]
)
def test_14_a_mailbox_that_is_none_stops(world, code):
    world.emulator.faults = [Fault("sendMail", Answer.error(404, code))]
    (outcome,) = world.send(letter())
    assert isinstance(outcome, Unavailable)
    assert outcome.needs_a_person


def test_14_a_mailbox_that_is_moving_is_tried_after_1_5_and_15_minutes_and_then_stops(world):
    world.emulator.faults = [
        Fault("sendMail", Answer.error(404, "ErrorNonExistentMailbox"), times=4)
    ]
    waits = []
    for number in range(4):
        (outcome,) = world.send(letter(number))
        waits.append((outcome.retry_after, outcome.needs_a_person))
        world.clock.advance(minutes=16)
    minutes = [timedelta(minutes=n) for n in (1, 5, 15)]
    assert waits == [*((wait, False) for wait in minutes), (None, True)]


def test_15_an_address_that_graph_refuses_is_that_readers_trouble_alone(world):
    outcomes = world.send(letter(1), letter(2, rcpt_to="broken@example."), letter(3))
    assert [type(outcome) for outcome in outcomes] == [Accepted, Rejected, Accepted]
    assert not outcomes[1].address_is_bad


def test_15_two_letters_in_a_row_that_are_not_understood_stop_and_mark_nobody(world):
    world.emulator.faults = [
        Fault("sendMail", Answer.error(400, "ErrorMimeContentInvalidBase64String"), times=9)
    ]
    outcomes = world.send(*(letter(n) for n in range(5)))
    assert isinstance(outcomes[0], Deferred)
    assert all(isinstance(o, Unavailable) and o.needs_a_person for o in outcomes[1:])
    assert len(world.emulator.requests("sendMail")) == 2


def test_15_a_header_that_graph_does_not_take_stops_at_once(world):
    text = "The internet message header name 'A' should start with 'x-' or 'X-'."
    world.emulator.faults = [
        Fault("sendMail", Answer.error(400, "InvalidInternetMessageHeader", text))
    ]
    (outcome,) = world.send(letter())
    assert outcome.needs_a_person


def test_15_an_unknown_refusal_holds_the_letter_and_three_in_a_row_stop(world):
    world.emulator.faults = [Fault("sendMail", Answer.error(400, "SomethingNew"), times=9)]
    outcomes = world.send(*(letter(n) for n in range(5)))
    assert [type(o) for o in outcomes] == [
        Deferred,
        Deferred,
        Unavailable,
        Unavailable,
        Unavailable,
    ]
    assert len(world.emulator.requests("sendMail")) == 3


def test_15_an_acceptance_ends_the_row(world):
    refusal = Answer.error(400, "SomethingNew")
    world.emulator.faults = [
        Fault("sendMail", refusal, times=2), Fault("sendMail", refusal, skip=1, times=2)
    ]  # fmt: skip
    outcomes = world.send(*(letter(n) for n in range(6)))
    assert [type(o) for o in outcomes] == [Deferred] * 2 + [Accepted] + [Deferred] * 2 + [Accepted]


# ------------------------------------------------------------------ 16, 17: quotas


@pytest.mark.parametrize("status", [429, 403, 400])
def test_16_the_daily_quota_closes_the_provider_for_a_day_whatever_the_status(world, status):
    world.emulator.faults = [
        Fault("sendMail", Answer.error(status, "ErrorSubmissionQuotaExceeded"))
    ]
    outcomes = world.send(letter(1), letter(2))
    assert outcomes[0].retry_after == timedelta(hours=24)
    assert not outcomes[0].needs_a_person
    assert len(world.emulator.requests("sendMail")) == 1


def test_16_the_emulators_own_quota_is_10000_readers_in_24_hours(world):
    world.emulator.mailboxes[MAILBOX].recipients.extend([world.clock()] * 10_000)
    (outcome,) = world.send(letter())
    assert outcome.rule == "daily quota"
    world.clock.advance(hours=24, seconds=1)
    assert isinstance(world.send(letter())[0], Accepted)


@pytest.mark.parametrize("status", [429, 403, 400])
def test_16_an_account_that_must_be_verified_needs_a_person(world, status):
    world.emulator.faults = [Fault("sendMail", Answer.error(status, "ErrorExceededMessageLimit"))]
    (outcome,) = world.send(letter())
    assert outcome.needs_a_person


@pytest.mark.parametrize(
    ("status", "code"), [(403, "ErrorQuotaExceeded"), (507, "QuotaExceededException")]
)
def test_17_our_own_full_mailbox_stops_and_names_sent_items(world, status, code):
    world.emulator.faults = [Fault("sendMail", Answer.error(status, code))]
    (outcome,) = world.send(letter())
    assert outcome.needs_a_person
    assert "Sent Items" in outcome.reply.text


def test_18_sending_never_uses_a_batch(world):
    world.send(*(letter(n) for n in range(3)))
    assert world.emulator.requests("$batch") == []


# ------------------------------------------------------------------ draft mode


def test_in_draft_mode_a_letter_is_made_and_then_sent(world):
    (outcome,) = world.send(letter(), provider=world.provider(mode="draft"))
    assert isinstance(outcome, Accepted)
    paths = [entry.path.rpartition("/")[2] for entry in world.emulator.requests("POST /v1.0")]
    assert paths == ["messages", "send"]


@pytest.mark.parametrize("answer", [Answer.error(504, "UnknownError"), Answer.error(500, "X")])
@pytest.mark.parametrize("done", [True, False])
def test_in_draft_mode_trouble_while_making_the_draft_is_no_doubt(world, answer, done):
    world.emulator.faults = [
        Fault("POST /v1.0/users/news@contoso.example/messages", answer, done=done)
    ]
    (outcome,) = world.send(letter(), provider=world.provider(mode="draft"))
    assert isinstance(outcome, Unavailable)
    assert not world.emulator.delivered


@pytest.mark.parametrize("done", [True, False], ids=["sent", "not sent"])
def test_in_draft_mode_a_doubt_ends_with_exactly_one_letter(world, done):
    provider = world.provider(mode="draft")
    world.emulator.faults = [Fault("/send", Answer.error(504, "UnknownError"), done=done)]
    (outcome,) = world.send(letter(), provider=provider)
    assert isinstance(outcome, Unconfirmed)
    world.clock.advance(seconds=1)
    assert isinstance(world.confirm(letter(), provider), Unconfirmed)
    world.clock.advance(minutes=3)
    assert isinstance(world.confirm(letter(), provider), Accepted)
    assert len(world.emulator.delivered) == 1


def test_in_draft_mode_a_draft_that_is_gone_is_a_doubt(world):
    item_gone = Answer.error(404, "ErrorItemNotFound")
    world.emulator.faults = [Fault("/send", item_gone, done=True)]
    (outcome,) = world.send(letter(), provider=world.provider(mode="draft"))
    assert isinstance(outcome, Unconfirmed)
    world.clock.advance(seconds=5)
    assert isinstance(world.confirm(letter()), Accepted)


def test_22_a_replaced_message_id_is_told_in_draft_mode_and_in_a_doubt_too(world):
    world.emulator.keeps_message_id = False
    world.emulator.faults = [Fault("/send", Answer.error(504, "UnknownError"), skip=1, done=True)]
    provider = world.provider(mode="draft")
    sent, doubtful = world.send(letter(1), letter(2), provider=provider)
    assert isinstance(sent, Accepted)
    assert isinstance(doubtful, Unconfirmed)
    given = [one.message_id for one in world.emulator.delivered]
    assert [sent.provider_message_id, doubtful.provider_message_id] == given
    assert not set(given) & {letter(1).message_id, letter(2).message_id}


def test_22_a_message_id_that_was_kept_is_not_told(world):
    (outcome,) = world.send(letter(), provider=world.provider(mode="draft"))
    assert outcome.provider_message_id == ""


# ------------------------------------------------------------------ safety


@pytest.mark.parametrize(
    "header",
    [
        b"To: <other@example.org>",
        b"To: <reader1@example.org>, <other@example.org>",
        b"To: <reader1@example.org>\r\nCc: <other@example.org>",
        b"To: <reader1@example.org>\r\nBcc: <other@example.org>",
        b"Subject: nobody",
    ],
)
def test_a_letter_whose_header_names_other_readers_never_leaves(world, header):
    content = f"From: <{MAILBOX}>\r\n".encode() + header + b"\r\n\r\nHello\r\n"
    (outcome,) = world.send(letter(content=content))
    assert outcome.rule == "recipients differ"
    assert world.emulator.journal == []


def test_a_redirect_is_not_followed_and_the_token_stays_with_us(world):
    elsewhere = {"location": "https://evil.example/v1.0/x"}
    world.emulator.faults = [Fault("sendMail", Answer(307, headers=elsewhere))]
    (outcome,) = world.send(letter())
    assert outcome.needs_a_person
    assert {e.host for e in world.emulator.journal if e.has_token} == {"graph.microsoft.com"}


def test_no_token_goes_to_a_foreign_host(world):
    async def run():
        provider = world.provider()
        await provider.open()
        try:
            for url in (
                "https://evil.example/v1.0/me",
                "http://graph.microsoft.com/v1.0/me",
                "https://graph.microsoft.com:444/",
                "https://a@graph.microsoft.com/",
            ):
                with pytest.raises(ValueError, match="is not"):
                    await provider._once("GET", url, headers={}, token="secret")
        finally:
            await provider.close()

    asyncio.run(run())
    assert world.emulator.journal == []


@pytest.mark.parametrize(
    "cloud", [("us-gov", "graph.microsoft.us"), ("china", "microsoftgraph.chinacloudapi.cn")]
)
def test_a_national_cloud_has_hosts_of_its_own(world, cloud):
    name, host = cloud
    identity = world.identity(cloud=name)
    provider = GraphProvider(
        MAILBOX,
        {"tenant_id": "t", "client_id": "a", "client_secret": "s", "cloud": name},
        transport=world.provider()._transport,
        token_source=identity,
        clock=world.clock,
    )
    (outcome,) = world.send(letter(), provider=provider)
    assert isinstance(outcome, Accepted)
    assert {e.host for e in world.emulator.requests("users/")} == {host}


@pytest.mark.parametrize(
    "options",
    [
        {"mailbox": "nobody"},
        {"mailbox": MAILBOX, "identity": {}},
        {"mailbox": MAILBOX, "mode": "batch"},
        {"mailbox": MAILBOX, "requests_at_once": 5},
        {"mailbox": MAILBOX, "emulator": "https://elsewhere.example"},
        {"mailbox": MAILBOX, "base_url": "http://graph.microsoft.com"},
        {"mailbox": MAILBOX, "identity": {"client_secret": "s", "client_id": "a"}},
    ],
)
def test_options_that_cannot_be_are_refused_before_the_first_letter(options):
    identity = {"tenant_id": "t", "client_id": "a", "client_secret": "s"}
    with pytest.raises(ValueError):
        GraphProvider(**({"identity": identity} | options))


# ------------------------------------------------------------------ the table


def test_every_rule_can_be_reached_and_names_its_source():
    for rule in RULES:
        assert rule.source
        if rule.reaction is Reaction.STOP:
            assert rule.remedy, rule.name


def test_every_status_has_a_rule_and_no_5xx_without_a_code_is_certain():
    for status in range(100, 600):
        rule = rule_for(status, (), "")
        if status >= 500:
            assert rule.reaction is Reaction.DOUBT


@pytest.mark.parametrize("inner", ["innerError", "innererror"])
def test_inner_codes_count_and_case_does_not(inner):
    body = json.dumps({"error": {"code": "x", inner: {"code": "errorSubmissionQuotaExceeded"}}})
    codes, _text = read_error(body.encode())
    assert rule_for(403, codes, "").name == "daily quota"


# ------------------------------------------------------------------ the contract


class TestGraphProviderContract(ProviderContract):
    @pytest.fixture(autouse=True)
    def _world(self, now):
        graph._mailboxes.clear()
        # The contract's letters come from an address of their own.
        self.world = World(Clock(now), mailboxes=["news@example.org"])
        yield
        graph._mailboxes.clear()

    def make(self):
        return self.world.provider(mailbox="news@example.org")

    def broken(self):
        self.world.emulator.faults = [Fault("users/", drop=httpx.ConnectError, times=99)]
        return self.world.provider(mailbox="news@example.org")
