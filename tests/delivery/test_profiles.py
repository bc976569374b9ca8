"""Named profiles: the researched limits, one budget for each mailbox and each tenant."""

import pytest

from delivery.conf import read_settings
from delivery.profiles import tenant_limit
from delivery.rates import LimitKind

OPTIONS = {
    "mailbox": "News@contoso.example",
    "identity": {"tenant_id": "contoso.example", "client_id": "app", "client_secret": "s"},
}


def read(**entry):
    """The settings of one provider, and the numbers of the problems."""
    entry = {"PROFILE": "microsoft365-graph", "OPTIONS": OPTIONS} | entry
    settings, problems = read_settings({"PROVIDERS": {"default": entry}})
    return settings, settings.providers.get("default"), [p.number for p in problems]


def described(provider):
    return {(limit.scope, str(limit.kind), limit.permits) for limit in provider.limits}


def test_the_profile_of_graph_needs_a_mailbox_and_an_identity_only():
    settings, provider, problems = read(LICENCES=10)
    assert problems == []
    assert provider.backend == "delivery.providers.graph.GraphProvider"
    assert settings.workers_for("default") == 1
    assert described(provider) == {
        ("mailbox:news@contoso.example", "rate", 28),
        ("mailbox:news@contoso.example", "cap", 10_000),
        ("tenant:contoso.example", "cap", 12_005),
    }


def test_smtp_and_graph_as_one_mailbox_share_every_budget():
    _, graph, _ = read()
    _, smtp, problems = read(PROFILE="microsoft365-smtp")
    assert problems == []
    assert {limit.key for limit in graph.limits} == {limit.key for limit in smtp.limits}
    made = smtp.make()
    assert (made.host, made.port, made.security) == ("smtp.office365.com", 587, "starttls")
    assert made.username == "News@contoso.example"
    assert made.connections == 3
    # Two entries for one mailbox do not make six connections.
    assert (smtp.connections.most, smtp.connections.scope) == (3, "smtp:news@contoso.example")
    assert graph.mailbox == smtp.mailbox == "news@contoso.example"


def test_two_mailboxes_of_a_tenant_share_the_tenants_limit_only():
    _, one, _ = read()
    _, two, _ = read(OPTIONS=OPTIONS | {"mailbox": "more@contoso.example"})
    shared = {limit.key for limit in one.limits} & {limit.key for limit in two.limits}
    assert shared == {"tenant:contoso.example|cap|86400s"}


def test_limits_that_are_given_replace_the_profiles():
    _, provider, problems = read(LIMITS=[{"rate": "10/minute"}], WORKERS=2)
    assert problems == []
    (limit,) = provider.limits
    assert (limit.kind, limit.permits, limit.scope) == (LimitKind.SMOOTH, 10, "provider:default")
    assert provider.workers == 2


@pytest.mark.parametrize(
    ("licences", "readers"), [(1, 10_000), (10, 12_005), (100, 22_059), (1_000, 72_446)]
)
def test_the_tenants_limit_grows_with_its_licences(licences, readers):
    assert tenant_limit(licences) == readers


def test_a_national_cloud_brings_its_smtp_host():
    identity = OPTIONS["identity"] | {"cloud": "us-gov"}
    _, provider, _ = read(PROFILE="microsoft365-smtp", OPTIONS=OPTIONS | {"identity": identity})
    assert provider.make().host == "smtp.office365.us"


def test_a_provider_without_a_profile_has_the_workers_of_all():
    entry = {"BACKEND": "delivery.providers.memory.MemoryProvider"}
    settings, problems = read_settings({"WORKERS": 7, "PROVIDERS": {"default": entry}})
    assert problems == []
    assert settings.workers_for("default") == 7


@pytest.mark.parametrize(
    ("entry", "number"),
    [
        ({"PROFILE": "microsoft366"}, 60),
        ({"PROFILE": 365}, 60),
        ({"WORKERS": 0}, 61),
        ({"WORKERS": True}, 61),
        ({"LICENCES": 0}, 62),
        ({"LICENCES": "many"}, 62),
        ({"OPTIONS": {}}, 63),
        ({"OPTIONS": {"mailbox": 1}}, 63),
        ({"OPTIONS": {"mailbox": "news@contoso.example"}}, 22),
        ({"OPTIONS": OPTIONS | {"colour": "red"}}, 21),
        ({"LIMIT": []}, 17),
    ],
)
def test_a_profile_that_cannot_be_filled_in_fails_the_check(entry, number):
    _, _, problems = read(**entry)
    assert problems == [number]


def test_licences_without_a_profile_are_a_mistake():
    entry = {"BACKEND": "delivery.providers.memory.MemoryProvider", "LICENCES": 5}
    _, problems = read_settings({"PROVIDERS": {"default": entry}})
    assert [problem.number for problem in problems] == [62]


def test_no_problem_and_no_repr_shows_a_secret():
    secret = "s3cr3t-value"
    identity = OPTIONS["identity"] | {"client_secret": secret, "cloud": "moon"}
    options = OPTIONS | {"identity": identity}
    for profile in ("microsoft365-graph", "microsoft365-smtp"):
        settings, problems = read_settings(
            {"PROVIDERS": {"default": {"PROFILE": profile, "OPTIONS": options}}}
        )
        assert problems
        assert secret not in repr(problems) + repr(settings)
