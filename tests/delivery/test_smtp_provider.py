"""The SMTP provider against a real server that misbehaves: which phase, whose trouble."""

import asyncio
from contextlib import asynccontextmanager
from itertools import count, cycle

import pytest
import uvloop

from delivery.message import Envelope, OutgoingMessage
from delivery.outcomes import (
    Accepted,
    Deferred,
    Phase,
    Rejected,
    Unavailable,
    Unconfirmed,
)
from delivery.providers.smtp import SMTPProvider
from tests.smtp_server import At, Drop, Rule, SMTPServer

CONTENT = b"From: <news@example.org>\r\nSubject: Hello\r\n\r\nGood day.\r\n"


def letter(number=1, rcpt_to="ada@example.org", content=CONTENT, mail_from=None):
    envelope = Envelope(mail_from or f"bounce+{number}@bounces.example.org", rcpt_to)
    return OutgoingMessage(number, envelope, (content,), f"<{number}@example.org>")


def send(server, *letters, at_once=False, **options):
    """The outcomes of these letters through one provider."""
    options = {"security": "none", "connections": 1, "local_hostname": "client.test"} | options

    async def run():
        provider = SMTPProvider(server.host, server.port, **options)
        await provider.open()
        try:
            if at_once:
                return await asyncio.gather(*(provider.send(one) for one in letters))
            return [await provider.send(one) for one in letters]
        finally:
            await provider.close()

    return asyncio.run(run())


@pytest.mark.parametrize("has_no_dots", [False, True])
def test_a_letter_arrives_with_its_envelope_and_exact_bytes(has_no_dots):
    with SMTPServer() as server:
        (outcome,) = send(server, letter()._replace(has_no_dots=has_no_dots))
    assert isinstance(outcome, Accepted)
    assert outcome.reply.code == 250
    (taken,) = server.accepted
    assert taken.mail_from == "bounce+1@bounces.example.org"
    assert taken.rcpt_to == ["ada@example.org"]
    assert taken.content == CONTENT


@pytest.mark.parametrize(
    "body", [b".\r\n", b"..\r\n", b".a\r\nb\r\n.\r\n", b"\r\n.\r\nMAIL FROM:<evil@example.org>\r\n"]
)
def test_lines_that_begin_with_a_dot_arrive_as_they_were(body):
    content = b"Subject: dots\r\n\r\n" + body
    with SMTPServer() as server:
        send(server, letter(content=content))
    assert [taken.content for taken in server.accepted] == [content]
    assert server.faults == []


def test_a_connection_is_kept_for_many_letters():
    with SMTPServer() as server:
        outcomes = send(server, *(letter(n) for n in range(10)))
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert len(server.connections) == 1
    assert server.verbs().count("EHLO") == 1
    assert server.verbs()[-1] == "QUIT"


def test_a_connection_is_renewed_after_its_number_of_letters():
    with SMTPServer() as server:
        send(server, *(letter(n) for n in range(7)), letters_per_connection=3)
    assert len(server.connections) == 3


def test_this_hosts_name_is_asked_for_once_however_many_connections_say_it(monkeypatch):
    asked = []
    monkeypatch.setattr("socket.getfqdn", lambda: asked.append(1) or "sender.example.org")
    with SMTPServer() as server:
        send(server, *(letter(n) for n in range(7)), letters_per_connection=3, local_hostname=None)
    assert len(server.connections) == 3
    assert len(asked) == 1


def test_never_more_connections_than_the_setting():
    with SMTPServer(rules=[Rule(At.FINAL_DOT, delay=0.02)]) as server:
        outcomes = send(server, *(letter(n) for n in range(30)), at_once=True, connections=4)
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert server.most_connections == 4


def test_a_letter_stands_behind_the_fewest_others():
    """One that need not wait for a slow answer on another connection does not."""
    answered = []

    async def send_all(server):
        provider = SMTPProvider(server.host, server.port, security="none", connections=2)

        async def send_one(number, rcpt_to="ada@example.org"):
            await provider.send(letter(number, rcpt_to))
            answered.append(number)

        await provider.open()
        slow, quick, *behind = (
            asyncio.create_task(send_one(number, rcpt_to))
            for number, rcpt_to in enumerate(["slow@example.org"] + 3 * ["ada@example.org"])
        )
        await quick
        await send_one(4)
        await asyncio.gather(slow, *behind)
        await provider.close()

    with SMTPServer(rules=[Rule(At.FINAL_DOT, address="slow@*", delay=0.5)]) as server:
        asyncio.run(send_all(server))
    assert answered.index(4) < answered.index(0)


def test_a_server_that_closed_an_idle_connection_costs_nothing():
    rule = Rule(At.MAIL, drop=Drop.BEFORE_REPLY, skip=1, times=1)
    with SMTPServer(rules=[rule]) as server:
        outcomes = send(server, letter(1), letter(2))
    assert [type(outcome) for outcome in outcomes] == [Accepted, Accepted]
    assert len(server.accepted) == 2


def test_an_unknown_user_is_rejected_and_the_connection_goes_on():
    rule = Rule(At.RCPT, "550 5.1.1 User unknown", address="gone@*")
    with SMTPServer(rules=[rule]) as server:
        gone, fine = send(server, letter(1, "gone@example.org"), letter(2))
    assert isinstance(gone, Rejected)
    assert gone.address_is_bad
    assert gone.reply.phase is Phase.RCPT
    assert isinstance(fine, Accepted)
    assert len(server.connections) == 1
    assert "RSET" in server.verbs()


def test_greylisting_is_deferred():
    rule = Rule(At.RCPT, "450 4.2.0 Greylisted", times=1)
    with SMTPServer(rules=[rule]) as server:
        first, second = send(server, letter(), letter())
    assert isinstance(first, Deferred)
    assert str(first.reply) == "450 4.2.0 Greylisted"
    assert isinstance(second, Accepted)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (At.RCPT, Deferred),
        (At.DATA, Deferred),
        (At.FINAL_DOT, Unconfirmed),
    ],
)
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_what_a_lost_connection_means_depends_on_the_phase(at, expected, reset):
    rule = Rule(at, drop=Drop.BEFORE_REPLY, reset=reset, times=1)
    with SMTPServer(rules=[rule]) as server:
        (outcome,) = send(server, letter())
    assert isinstance(outcome, expected)
    assert outcome.reply.code is None
    assert outcome.reply.phase.value == at.value


def test_connection_lost_before_the_first_letter_began_is_the_providers_trouble():
    with SMTPServer(rules=[Rule(At.MAIL, drop=Drop.BEFORE_REPLY)]) as server:
        (outcome,) = send(server, letter())
    assert isinstance(outcome, Unavailable)
    assert not outcome.needs_a_person


def test_connection_lost_after_the_final_dot_is_unconfirmed_though_the_server_kept_it():
    with SMTPServer(rules=[Rule(At.FINAL_DOT, drop=Drop.BEFORE_REPLY, times=1)]) as server:
        doubtful, fine = send(server, letter(1), letter(2))
        assert server.wait_until(lambda server: len(server.accepted) == 2)
    assert isinstance(doubtful, Unconfirmed)
    assert doubtful.reply.phase is Phase.FINAL_DOT
    assert isinstance(fine, Accepted)


def test_no_answer_to_the_final_dot_is_unconfirmed_and_its_late_answer_is_nobodys():
    with SMTPServer(rules=[Rule(At.FINAL_DOT, delay=0.5, times=1)]) as server:
        slow, fine = send(server, letter(1), letter(2, "gone@example.org"), final_dot_timeout=0.1)
    assert isinstance(slow, Unconfirmed)
    assert isinstance(fine, Unconfirmed | Accepted)
    assert len(server.connections) == 2  # never reused after a time-out


def test_half_an_answer_to_the_final_dot_is_unconfirmed():
    with SMTPServer(rules=[Rule(At.FINAL_DOT, drop=Drop.HALF_REPLY)]) as server:
        (outcome,) = send(server, letter())
    assert isinstance(outcome, Unconfirmed)


def test_an_answer_out_of_step_after_the_final_dot_is_unconfirmed():
    with SMTPServer(rules=[Rule(At.FINAL_DOT, "354 Go ahead", times=1)]) as server:
        doubtful, fine = send(server, letter(1), letter(2))
    assert isinstance(doubtful, Unconfirmed)
    assert isinstance(fine, Accepted)
    assert len(server.connections) == 2


def test_any_2yz_after_the_final_dot_is_acceptance():
    with SMTPServer(rules=[Rule(At.FINAL_DOT, "252 2.6.0 taken")]) as server:
        (outcome,) = send(server, letter())
    assert isinstance(outcome, Accepted)


@pytest.mark.parametrize(
    ("answer", "given"),
    [
        (
            "250 2.0.0 OK <other@prod.example> [Hostname=AM0.prod.outlook.com]",
            "<other@prod.example>",
        ),
        # A mailbox that keeps ours says so in the same words.
        ("250 2.0.0 OK <1@example.org> [Hostname=AM0.prod.outlook.com]", ""),
        ("250 2.0.0 OK <readable@only.by.exchange> queued", ""),
        ("250 2.0.0 Ok: queued as 4bX1", ""),
    ],
)
def test_22_exchange_says_which_message_id_it_gave_the_letter(answer, given):
    with SMTPServer(rules=[Rule(At.FINAL_DOT, answer)]) as server:
        (outcome,) = send(server, letter())
    assert isinstance(outcome, Accepted)
    assert outcome.provider_message_id == given


def test_a_refusal_after_the_final_dot_is_definite():
    rule = Rule(At.FINAL_DOT, "554 5.7.1 Looks like spam", times=1)
    with SMTPServer(rules=[rule]) as server:
        refused, fine = send(server, letter(1), letter(2))
    assert isinstance(refused, Rejected)
    assert not refused.address_is_bad
    assert isinstance(fine, Accepted)


def test_a_421_greeting_pauses_the_provider():
    with SMTPServer(rules=[Rule(At.GREETING, "421 4.3.2 Busy", drop=Drop.AFTER_REPLY)]) as server:
        (outcome,) = send(server, letter())
    assert isinstance(outcome, Unavailable)
    assert outcome.reply.phase is Phase.GREETING


def test_a_server_that_is_not_there_is_the_providers_trouble():
    with SMTPServer() as server:
        pass
    (outcome,) = send(server, letter())
    assert isinstance(outcome, Unavailable)
    assert outcome.reply.phase is Phase.CONNECT


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_login_goes_over_tls_with_the_certificate_verified(security):
    with SMTPServer(security=security, users={"penny": "s3cret"}) as server:
        (outcome,) = send(
            server,
            letter(),
            security=security,
            username="penny",
            password="s3cret",
            ca_file=str(server.certificate),
        )
    assert isinstance(outcome, Accepted), outcome
    assert server.connections[0].tls
    assert server.connections[0].username == "penny"


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_both_mechanisms_of_password_login(mechanism):
    with SMTPServer(users={"penny": "s3cret"}, mechanisms=[mechanism]) as server:
        (outcome,) = send(server, letter(), username="penny", password="s3cret")
    assert isinstance(outcome, Accepted), outcome


def test_a_refused_login_needs_a_person_and_is_tried_once():
    with SMTPServer(users={"penny": "s3cret"}, mechanisms=["PLAIN"]) as server:
        (outcome,) = send(server, letter(), username="penny", password="wrong")
    assert isinstance(outcome, Unavailable)
    assert outcome.needs_a_person
    assert server.verbs().count("AUTH") == 1
    assert "wrong" not in str(outcome.reply)


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_an_untrusted_certificate_needs_a_person_and_no_letter_leaves(security):
    with SMTPServer(security=security) as server:
        (outcome,) = send(server, letter(), security=security)
    assert isinstance(outcome, Unavailable)
    assert outcome.needs_a_person
    assert "ertificate" in outcome.reply.text
    assert "MAIL" not in server.verbs()


def test_a_server_without_starttls_gets_neither_password_nor_letter():
    with SMTPServer(users={"penny": "s3cret"}) as server:
        (outcome,) = send(
            server, letter(), security="starttls", username="penny", password="s3cret"
        )
    assert isinstance(outcome, Unavailable)
    assert outcome.needs_a_person
    assert "AUTH" not in server.verbs()
    assert "MAIL" not in server.verbs()


@pytest.mark.parametrize(
    "address", ["a@x.org>\r\nRCPT TO:<b@x.org", "a b@x.org", "ä@x.org", "<a@x"]
)
def test_an_address_that_could_end_the_command_never_reaches_the_wire(address):
    with SMTPServer() as server:
        outcome, _fine = send(server, letter(1, address), letter(2))
    assert isinstance(outcome, Rejected)
    assert not outcome.address_is_bad
    assert [taken.rcpt_to for taken in server.accepted] == [["ada@example.org"]]


def test_a_reply_that_is_no_reply_ends_the_connection():
    with SMTPServer(rules=[Rule(At.RCPT, b"gibberish\r\n", times=1)]) as server:
        broken, fine = send(server, letter(1), letter(2))
    assert isinstance(broken, Deferred)
    assert isinstance(fine, Accepted)
    assert len(server.connections) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"host": ""},
        {"port": 0},
        {"security": "ssl"},
        {"username": "x"},
        {"connections": 0},
        {"ca_file": "/no/such/file", "security": "tls"},
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_before_anything_is_opened(options):
    with pytest.raises((ValueError, OSError)):
        SMTPProvider(**({"host": "localhost"} | options))


async def answer_all_that_is_there(reader, writer):
    """An SMTP server that reads whatever has arrived and answers all of it in one segment."""
    writer.write(b"220 test\r\n")
    in_letter = False
    while data := await reader.read(65536):
        answers = []
        for line in data.splitlines():
            if in_letter:
                if line == b".":
                    in_letter = False
                    answers.append(b"250 Taken\r\n")
            elif line.startswith(b"EHLO"):
                answers.append(b"250-test\r\n250 PIPELINING\r\n")
            elif line == b"DATA":
                in_letter = True
                answers.append(b"354 Go on\r\n")
            elif line:
                answers.append(b"221 Bye\r\n" if line == b"QUIT" else b"250 OK\r\n")
        writer.write(b"".join(answers))
    writer.close()


@asynccontextmanager
async def sending_to(handler, note, connections=1):
    """A provider that sends to this server, in the same event loop; ``note``: of final dots."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    provider = SMTPProvider(
        host, port, security="none", connections=connections, local_hostname="client.test"
    )
    provider.watch(note)
    await provider.open()
    yield provider
    await provider.close()
    server.close()


async def events_of(connections):
    """What happens to twenty letters that are sent at once, in order."""
    events = []

    def note(number):
        events.append(("final dot", number))

    async def send_one(provider, number):
        assert isinstance(await provider.send(letter(number)), Accepted)
        events.append(("answer", number))

    async with sending_to(answer_all_that_is_there, note, connections) as provider:
        await asyncio.gather(*(send_one(provider, number) for number in range(20)))
    return events


def test_no_letter_leaves_before_the_answer_to_the_one_ahead_of_it_is_known():
    """Even when that answer and the 354 to the next one arrive together: a process killed between
    the two would leave two letters of one connection in doubt."""
    events = asyncio.run(events_of(connections=1))
    assert events == [(what, number) for number in range(20) for what in ("final dot", "answer")]


def test_letters_of_several_connections_leave_together():
    """So that they wake a sleeping server once: both answers are heard before the next two go."""
    events = asyncio.run(events_of(connections=2))
    assert [what for what, _number in events] == ["final dot"] * 2 + (
        ["answer"] * 2 + ["final dot"] * 2
    ) * 9 + ["answer"] * 2


def answer_in_pieces(extension, octets, taken):
    """A server that answers what has arrived in pieces of so many octets: letters by turns in one
    line, in two, and with a refusal; every fourth recipient is unknown. ``taken``: the letters."""
    letters, recipients = count(), count()
    answers_to_letters = cycle([b"250 Taken", b"250 Taken", b"250-Taken\r\n250 it", b"452 Full"])

    async def handle(reader, writer):
        async def say(*answers):
            text = b"".join(b"%s\r\n" % answer for answer in answers)
            for at in range(0, len(text), octets):
                writer.write(text[at : at + octets])
                await writer.drain()
                await asyncio.sleep(0)  # for the client, who is in the same loop

        await say(b"220 test")
        unread, answers = b"", []
        while data := await reader.read(65536):
            unread += data
            while (end := unread.find(b"\r\n")) >= 0:
                line, unread = unread[:end], unread[end + 2 :]
                if line.startswith(b"EHLO"):
                    answers += [b"250-test", b"250-PIPELINING", b"250 " + extension]
                elif line.startswith(b"RCPT"):
                    is_unknown = next(recipients) % 4 == 3
                    answers.append(b"550 5.1.1 Unknown" if is_unknown else b"250 OK")
                elif line == b"DATA":
                    answers.append(b"554 No recipient" if is_unknown else b"354 Go on")
                    if not is_unknown:
                        await say(*answers)
                        while b"\r\n.\r\n" not in unread:
                            unread += await reader.read(65536)
                        content, unread = unread.split(b"\r\n.\r\n", 1)
                        taken.append(content + b"\r\n")
                        answers = [b"%s, number %d" % (next(answers_to_letters), next(letters))]
                elif line.startswith(b"BDAT"):
                    size = int(line.split()[1])
                    while len(unread) < size:
                        unread += await reader.read(65536)
                    content, unread = unread[:size], unread[size:]
                    taken.append(content)
                    answers.append(b"%s, number %d" % (next(answers_to_letters), next(letters)))
                else:
                    answers.append(b"221 Bye" if line == b"QUIT" else b"250 OK")
            await say(*answers)
            answers = []
        writer.close()

    return handle


@pytest.mark.parametrize("extension", [b"CHUNKING", b"SIZE"])
@pytest.mark.parametrize("octets", [1, 2, 7, 30, 10_000])
def test_replies_say_the_same_in_whatever_pieces_they_arrive(extension, octets):
    """In one piece the usual ones are read at one look."""

    async def run():
        handler = answer_in_pieces(extension, octets, [])
        async with sending_to(handler, lambda _reference: None) as provider:
            return await asyncio.gather(*(provider.send(letter(n)) for n in range(40)))

    replies = [outcome.reply for outcome in asyncio.run(run())]
    expected, taken = [], cycle([(250, "Taken"), (250, "Taken"), (250, "Taken\nit"), (452, "Full")])
    numbers = count()
    for n in range(40):
        if n % 4 == 3:
            expected.append((Phase.RCPT, 550, "5.1.1 Unknown"))
        else:
            code, text = next(taken)
            expected.append((Phase.FINAL_DOT, code, f"{text}, number {next(numbers)}"))
    assert [(reply.phase, reply.code, reply.text) for reply in replies] == expected


@pytest.mark.parametrize("loop", [asyncio, uvloop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("octets", [10, 4_000, 100_000])
@pytest.mark.parametrize("extension", [b"CHUNKING", b"SIZE"])
def test_a_letter_arrives_whole_however_many_segments_it_has(loop, octets, extension):
    """Some are written as they are; more than thirty are put together first."""
    content = CONTENT + b"".join(b"line %d of many\r\n" % n for n in range(3_000))
    segments = [content[at : at + octets] for at in range(0, len(content), octets)]
    one, taken = letter()._replace(segments=segments), []

    async def run():
        async with sending_to(
            answer_in_pieces(extension, 10_000, taken), lambda _: None
        ) as provider:
            sent = [provider.send(one._replace(has_no_dots=bool(n % 2))) for n in range(3)]
            return await asyncio.gather(*sent)

    outcomes = loop.run(run())
    assert [outcome.reply.text for outcome in outcomes] == [
        "Taken, number 0",
        "Taken, number 1",
        "Taken\nit, number 2",
    ]
    assert taken == [content] * 3


@pytest.mark.parametrize("then", [b"421 4.3.2 Closing\r\n", b""], ids=["says 421", "closes"])
def test_a_letter_does_not_leave_on_a_connection_that_ends_before_it(then):
    """Its recipient was accepted and not an octet of it was written: it is sent again later."""
    read, dots = [], []

    async def end_after_data(reader, writer):
        writer.write(b"220 test\r\n")
        while line := await reader.readline():
            read.append(line)
            if line == b"DATA\r\n":
                writer.write(b"354 Go on\r\n" + then)
                writer.close()
            else:
                writer.write(b"250 test\r\n")

    async def run():
        async with sending_to(end_after_data, dots.append) as provider:
            return await provider.send(letter())

    outcome = asyncio.run(run())
    assert isinstance(outcome, Deferred)
    assert outcome.reply.phase is Phase.DATA
    assert dots == []
    assert read[-1] == b"DATA\r\n"
