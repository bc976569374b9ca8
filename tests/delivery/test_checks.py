"""A wrong setting fails in ``manage.py check``, with an id of its own and a hint."""

from datetime import timedelta

import pytest
from django.db import connection

from campaigns.models import Subscriber
from delivery.checks import (
    check_delivery_settings,
    check_size_of_sqlite,
    check_where_letters_lead,
)
from delivery.conf import DeliverySettings, read_settings
from delivery.models import WorkerLease

SMTP = "delivery.providers.smtp.SMTPProvider"
GOOD = {
    "WORKERS": 5,
    "CYCLE_BATCH_SIZE": 10,
    "SEND_BATCH_SIZE": 5,
    "RETURN_PATH": "bounce+{token}@bounces.example.org",
    "PROVIDERS": {
        "default": {
            "BACKEND": SMTP,
            "OPTIONS": {"host": "smtp.example.org", "connections": 3},
            "LIMITS": [{"rate": "30/minute"}, {"cap": "10000/day", "scope": "tenant:contoso"}],
        }
    },
}


class Half:
    """A class with half of a provider's names."""

    def open(self):
        """Opens."""


class WithoutConcurrency(Half):
    async def send(self, message):
        """Sends."""

    async def close(self):
        """Closes."""


def provider(**changes):
    return {"PROVIDERS": {"default": {"BACKEND": SMTP, "OPTIONS": {"host": "x"}} | changes}}


WRONG = {
    "E001": "not a dict",
    "E002": GOOD | {"WORKERS": 0},
    "E003": GOOD | {"CYCLE_BATCH_SIZE": "10"},
    "E004": GOOD | {"SEND_BATCH_SIZE": True},
    "E005": GOOD | {"SLICE_LENGTH": 20},
    "E006": GOOD | {"LEASE": timedelta(seconds=1)},
    "E007": GOOD | {"MAX_ATTEMPTS": 0},
    "E008": GOOD | {"MAX_AGE": timedelta(days=30)},
    "E009": GOOD | {"WORKER": 5},
    "E010": GOOD | {"RETRY_AFTER": []},
    "E011": GOOD | {"RETURN_PATH": "bounces@example.org"},
    "E012": GOOD | {"RETURN_PATH": "b" * 41 + "+{token}@example.org"},
    "E013": {key: value for key, value in GOOD.items() if key != "PROVIDERS"},
    "E014": GOOD | {"PROVIDERS": {"other": {"BACKEND": SMTP, "OPTIONS": {"host": "x"}}}},
    "E015": GOOD | {"PROVIDERS": GOOD["PROVIDERS"] | {"": {}}},
    "E016": GOOD | {"PROVIDERS": {"default": {"OPTIONS": {}}}},
    "E017": GOOD | provider(LIMIT=[]),
    "E018": GOOD | provider(OPTIONS=["host"]),
    "E019": GOOD | provider(BACKEND="delivery.providers.smpt.SMTPProvider"),
    "E020": GOOD | provider(BACKEND="tests.delivery.test_checks.Half", OPTIONS={}),
    "E021": GOOD | provider(OPTIONS={"hostname": "x"}),
    "E022": GOOD | provider(OPTIONS={"host": "x", "security": "ssl"}),
    "E023": GOOD | provider(LIMITS={"rate": "30/minute"}),
    "E024": GOOD | provider(LIMITS=[{"rate": "30/minute", "cap": "5/day"}]),
    "E028": GOOD | provider(BACKEND="tests.delivery.test_checks.WithoutConcurrency", OPTIONS={}),
    "E029": GOOD | {"RECORDERS": "recorders"},
    "E025": GOOD | provider(LIMITS=[{"rate": "30 per minute"}]),
    "E040": GOOD | {"STALE_AFTER": timedelta(0)},
    "E041": GOOD | {"RESEND_AFTER": timedelta(minutes=1)},
    "E042": GOOD | {"GUARD_RAILS": {"BOUNCES": 0.05}},
    "E043": GOOD | {"GUARD_RAILS": {"BOUNCED": 5}},
    "E044": GOOD | {"GUARD_RAILS": {"OF_LAST": None}},
    "E045": GOOD | {"ALERTS": {"MAIL": True}},
    "E046": GOOD | {"ALERTS": {"WEBHOOK": "http://hooks.example.org/x"}},
    "E047": GOOD | {"INSTALLATIONS": "installations"},
    "E048": GOOD | {"INSTALLATION": "x" * 65},
    "E049": GOOD | {"EVENT_LOOP": "trio"},
    "E050": GOOD | {"LOOK_UP_EXCHANGES": "yes"},
    "E064": GOOD | {"PROVIDERS": GOOD["PROVIDERS"] | {"team": {"POOL": "default"}}},
    "E065": GOOD | {"PROVIDERS": GOOD["PROVIDERS"] | {"team": {"POOL": ["default", "b"]}}},
}


def test_good_settings_pass(settings):
    settings.DELIVERY = GOOD
    assert check_delivery_settings() == []


@pytest.mark.parametrize(
    "limits",
    [
        [{"connections": 0}],
        [{"connections": "3"}],
        [{"connections": 3}, {"connections": 4}],
        [{"connections": 3, "rate": "30/minute"}],
    ],
)
def test_a_wrong_number_of_connections_is_refused(settings, limits):
    settings.DELIVERY = GOOD | provider(LIMITS=limits)
    assert {message.id for message in check_delivery_settings()} <= {
        "delivery.E024",
        "delivery.E025",
    }
    assert check_delivery_settings()


@pytest.mark.parametrize("number", WRONG)
def test_a_wrong_setting_has_its_own_id_and_a_hint(settings, number):
    settings.DELIVERY = WRONG[number]
    found = check_delivery_settings()
    assert f"delivery.{number}" in {message.id for message in found}
    assert all(message.hint for message in found)


def test_a_rail_may_be_switched_off_and_plain_http_allowed(settings):
    settings.DELIVERY = GOOD | {
        "GUARD_RAILS": {"BOUNCED": None, "IN_A_ROW": None, "ALIKE": 0.1},
        "ALERTS": {"WEBHOOK": "http://hooks.example.org/s3cret", "ALLOW_HTTP": True},
    }
    assert check_delivery_settings() == []
    understood, _problems = read_settings(settings.DELIVERY)
    assert (understood.guard_rails.bounced, understood.guard_rails.alike) == (None, 0.1)
    assert understood.alerts.webhook == "http://hooks.example.org/s3cret"
    assert "s3cret" not in repr(understood)


def test_one_mistake_is_reported_once(settings):
    for number in set(WRONG) - {"E014", "E018"}:
        settings.DELIVERY = WRONG[number]
        ids = [message.id for message in check_delivery_settings() if message.is_serious()]
        assert ids.count(f"delivery.{number}") == 1


def test_a_wave_larger_than_the_claim_is_a_warning(settings):
    settings.DELIVERY = GOOD | {"SEND_BATCH_SIZE": 50}
    assert [message.id for message in check_delivery_settings()] == ["delivery.W101"]


@pytest.mark.parametrize(
    ("cluster", "number"),
    [({"orm": "default", "timeout": 30}, "E026"), ({"timeout": 900}, "E027")],
)
def test_a_task_queue_that_would_hurt_is_refused(settings, cluster, number):
    settings.DELIVERY = GOOD
    settings.Q_CLUSTER = cluster
    assert [message.id for message in check_delivery_settings()] == [f"delivery.{number}"]


def test_the_engine_falls_back_to_the_default_where_the_check_complains():
    understood, problems = read_settings(GOOD | {"WORKERS": -1})
    assert understood.workers == DeliverySettings().workers
    assert [problem.number for problem in problems] == [2]


def test_a_password_stands_in_no_message_and_no_repr(settings):
    settings.DELIVERY = GOOD | provider(
        OPTIONS={"host": "x", "username": "penny", "password": "s3cret", "port": 0}
    )
    found = check_delivery_settings()
    assert [message.id for message in found] == ["delivery.E022"]
    understood, _problems = read_settings(
        GOOD | provider(OPTIONS={"host": "x", "username": "p", "password": "s3cret"})
    )
    assert "s3cret" not in f"{found}{understood!r}"


@pytest.mark.parametrize(
    ("host", "base_url", "expected"),
    [
        ("smtp.example.org", "http://localhost:8000", ["delivery.W102"]),
        ("smtp.example.org", "http://[::1]:8000", ["delivery.W102"]),
        ("smtp.example.org", "https://news.example.org", []),
        ("127.0.0.1", "http://localhost:8000", []),
        ("::1", "http://localhost:8000", []),
        ("smtp.example.org", "http://[::1", []),  # campaigns.E002
    ],
)
def test_letters_that_leave_with_links_to_this_machine_are_a_warning(
    settings, host, base_url, expected
):
    settings.DELIVERY = GOOD | provider(OPTIONS={"host": host})
    settings.BASE_URL = base_url
    assert [message.id for message in check_where_letters_lead()] == expected


def test_letters_into_a_folder_do_not_leave(settings, tmp_path):
    maildir = "delivery.providers.maildir.MaildirProvider"
    settings.DELIVERY = GOOD | provider(BACKEND=maildir, OPTIONS={"path": str(tmp_path)})
    assert check_where_letters_lead() == []


@pytest.mark.django_db
def test_a_small_embedded_database_on_one_host_is_no_warning():
    assert check_size_of_sqlite(databases=["default"]) == []


@pytest.mark.django_db
def test_an_embedded_database_that_was_outgrown_is_a_warning_and_no_other_is(monkeypatch):
    monkeypatch.setattr("delivery.checks.MOST_READERS_ON_SQLITE", 2)
    for number in range(3):
        Subscriber.objects.create(email=f"reader{number}@example.org")
    for number, host in enumerate(["one:1", "one:2", "two:1"]):
        WorkerLease.objects.create(provider="default", slot=number, claim_key=number, holder=host)
    found = check_size_of_sqlite(databases=["default"])
    outgrown = ["delivery.W001", "delivery.W002"] if connection.vendor == "sqlite" else []
    assert [message.id for message in found] == outgrown
    assert check_size_of_sqlite() == []
