"""A provider in trouble, before a real SMTP server: no reader is charged, silence is silence."""

import threading
from datetime import timedelta

import pytest

from delivery import limits, slots
from delivery.models import ConnectionPool, ConnectionSlot, Delivery
from delivery.outcomes import Accepted, Phase, Reply, Unavailable
from delivery.providers.memory import MemoryProvider
from tests.delivery.conftest import coordinate, make_campaign, make_readers, run_slice, statuses
from tests.smtp_server import At, Drop, Rule, SMTPServer

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def through(settings):
    """Points a provider at a server; more of its settings may be given."""

    def point(server, alias="default", connections=3, workers=1, **options):
        more = {key: options.pop(key) for key in ("LIMITS",) if key in options}
        settings.DELIVERY = settings.DELIVERY | {
            "PROVIDERS": settings.DELIVERY["PROVIDERS"]
            | {
                alias: {
                    "BACKEND": "delivery.providers.smtp.SMTPProvider",
                    "WORKERS": workers,
                    "OPTIONS": {
                        "host": server.host,
                        "port": server.port,
                        "security": "none",
                        "connections": connections,
                        **options,
                    },
                    **more,
                }
            }
        }

    return point


def seen(server):
    """All that the server ever saw of us."""
    return len(server.connections), len(server.commands)


def attempts():
    return set(Delivery.objects.values_list("attempts", flat=True))


def test_a_fourth_connection_that_is_refused_makes_us_use_fewer_and_charges_no_reader(
    mailing_list, clock, through
):
    make_readers(mailing_list, 60)
    campaign = make_campaign(mailing_list, clock())
    coordinate(clock)
    refuse = "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded, concurrent connections"
    rules = [
        Rule(At.MAIL, refuse, when=lambda session: session.place > 3),
        Rule(At.FINAL_DOT, delay=0.02),
    ]
    with SMTPServer(rules=rules) as server:
        through(server, connections=6)
        run_slice(clock)
        assert statuses(campaign) == {"sent": 60}
        assert attempts() == {1}
        assert server.most_connections > 3
        assert slots.limit_of(slots.Connections(6, "provider:default")) == 3
        assert limits.closed_until(limits.state_of("default"), clock()) is None
        assert len(server.accepted) == 60

        # The next slice stays below from its first letter.
        make_readers(mailing_list, 20, prefix="new")
        make_campaign(mailing_list, clock(), name="June")
        coordinate(clock)
        before = len(server.connections)
        run_slice(clock)
        opened = server.connections[before:]
        assert 0 < len(opened) <= 3
    assert not ConnectionSlot.objects.filter(claim_key__isnull=False).exists()


def test_a_storm_of_421_brings_silence_until_its_end_and_charges_no_reader(
    campaign, clock, through
):
    rules = [Rule(At.MAIL, "421 4.3.0 Service shutting down", drop=Drop.AFTER_REPLY, times=50)]
    with SMTPServer(rules=rules) as server:
        through(server)
        run_slice(clock)
        assert statuses(campaign) == {"queued": 12}
        until = limits.closed_until(limits.state_of("default"), clock())
        assert until > clock()
        before = seen(server)
        # For what is nearer than five seconds a worker waits, and this clock would stand still.
        for left in (14, 10, 6):
            clock.now = until - timedelta(seconds=left)
            assert coordinate(clock) == {}
            assert run_slice(clock).sent == 0
        assert seen(server) == before
        server.rules.clear()
        clock.now = until + timedelta(seconds=1)
        assert coordinate(clock) == {"default": 1}
        run_slice(clock)
    assert statuses(campaign) == {"sent": 12}
    assert attempts() == {1}


def test_a_storm_that_goes_on_makes_each_silence_twice_as_long(campaign, clock, through):
    storm = Rule(At.MAIL, "421 4.3.0 Service shutting down", drop=Drop.AFTER_REPLY)
    with SMTPServer(rules=[storm]) as server:
        through(server)
        for seconds in (30, 60, 120):
            before = len(server.connections)
            run_slice(clock)
            # The wave that met the storm, three tries a letter, and no other wave.
            assert before < len(server.connections) <= before + 3 * 5
            state = limits.state_of("default")
            assert state.paused_until == clock() + timedelta(seconds=seconds)
            assert "421 4.3.0" in state.because
            before_silence = seen(server)
            clock.now = state.paused_until - timedelta(seconds=6)
            assert coordinate(clock) == {}
            assert run_slice(clock).sent == 0
            assert seen(server) == before_silence
            clock.now = state.paused_until + timedelta(seconds=1)
        assert attempts() == {0}
        server.rules.clear()
        run_slice(clock)
    assert statuses(campaign) == {"sent": 12}
    assert attempts() == {1}
    assert limits.state_of("default").failures == 0


def test_a_spent_day_quota_is_waited_for_in_silence_and_charges_no_reader(campaign, clock, through):
    spent = (
        "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; "
        "Failed to process message due to a permanent exception"
    )
    with SMTPServer(rules=[Rule(At.FINAL_DOT, spent, skip=4)]) as server:
        through(server, connections=1)
        run_slice(clock)
        assert statuses(campaign) == {"sent": 4, "queued": 8}
        state = limits.state_of("default")
        assert "SubmissionQuotaExceeded" in state.because
        assert not state.stopped
        before = seen(server)
        until = limits.closed_until(state, clock())
        assert until - clock() >= timedelta(minutes=30)
        for minutes in range(0, 30, 7):
            clock.now = until - timedelta(minutes=30 - minutes)
            coordinate(clock)
            run_slice(clock)
        assert seen(server) == before
        server.rules.clear()
        clock.now = until + timedelta(seconds=1)
        run_slice(clock)
    assert statuses(campaign) == {"sent": 12}
    assert attempts() == {1}


def test_a_refused_login_is_not_tried_again_before_a_person_opened_the_provider(
    campaign, clock, through
):
    with SMTPServer(users={"ada": "right"}) as server:
        through(server, connections=1, username="ada", password="wrong")
        run_slice(clock)
        assert limits.state_of("default").stopped
        before = seen(server)
        for _ in range(5):
            clock.advance(days=1)
            assert coordinate(clock) == {}
            assert run_slice(clock).sent == 0
        assert seen(server) == before
        server.users["ada"] = "wrong"
        limits.resume("default", clock())
        run_slice(clock)
    assert statuses(campaign) == {"sent": 12}
    assert attempts() == {1}


def test_a_refused_login_is_not_repeated_for_each_noted_letter(campaign, clock, through, settings):
    settings.DELIVERY = settings.DELIVERY | {"CYCLE_BATCH_SIZE": 12, "SEND_BATCH_SIZE": 12}
    with SMTPServer(users={"ada": "right"}) as server:
        through(server, connections=2, username="ada", password="wrong")
        run_slice(clock)
        # An account is locked after a handful of logins: one on each connection, and no more.
        assert len(server.connections) <= 2
    assert statuses(campaign) == {"queued": 12}
    assert attempts() == {0}


def test_a_paused_provider_delays_no_other(campaign, mailing_list, clock, through):
    other = make_campaign(mailing_list, clock(), name="June", provider="other")
    with SMTPServer(rules=[Rule(At.GREETING, "421 4.3.2 Busy")]) as busy, SMTPServer() as free:
        through(busy)
        through(free, alias="other")
        run_slice(clock)
        coordinate(clock)
        run_slice(clock, alias="other")
        assert len(free.accepted) == 12
        assert not busy.accepted
    assert statuses(other) == {"sent": 12}
    assert statuses(campaign) == {"queued": 12}


def test_a_pause_by_one_worker_stops_another_before_its_next_wave(campaign, clock):
    def trouble_elsewhere(message):
        if not MemoryProvider.outbox:
            busy = Unavailable(Reply(Phase.MAIL, 421, "4.3.2 Busy"))
            thread = threading.Thread(target=limits.pause, args=("default", busy, clock()))
            thread.start()
            thread.join()
        return Accepted(Reply(Phase.LOCAL, 250, "kept"))

    MemoryProvider.answer = trouble_elsewhere
    run_slice(clock)
    assert statuses(campaign) == {"sent": 5, "queued": 7}


def test_a_worker_without_a_free_connection_opens_none_and_comes_back_later(
    campaign, clock, through
):
    with SMTPServer() as server:
        through(server, connections=2, LIMITS=[{"connections": 2}])
        two = slots.Connections(2, "provider:default")
        slots.make(two)
        slots.hold(two, 99, 2)
        done = run_slice(clock)
        assert (done.sent, seen(server)) == (0, (0, 0))
        assert done.wait_until == clock() + timedelta(seconds=10)
        slots.keep(two, 99, 1)
        run_slice(clock)
        assert statuses(campaign) == {"sent": 12}
        assert server.most_connections == 1


def test_connections_are_given_back_with_the_end_of_a_slice(campaign, clock, through):
    with SMTPServer() as server:
        through(server, LIMITS=[{"connections": 3, "scope": "tenant:contoso"}])
        run_slice(clock)
        assert server.wait_until(lambda server: server.open_connections == 0)
    assert ConnectionPool.objects.get().scope == "tenant:contoso"
    assert list(ConnectionSlot.objects.values_list("claim_key", flat=True)) == [None] * 3
