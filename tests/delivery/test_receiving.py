"""Which domains belong together, and how DNS is asked: never in anybody's way."""

from __future__ import annotations

from datetime import timedelta

import dns.resolver
import pytest
from dns.exception import Timeout

from campaigns.models import Subscriber
from delivery import exchanges, groups, tasks
from delivery.exchanges import LookUpError, from_dns, look_up_due
from delivery.models import ReceivingDomain
from delivery.receiving import can_be_asked, domain_of, group_by_exchanges, well_known_group

LONG = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("exchange", "group"),
    [
        ("aspmx.l.google.com.", "google"),
        ("ALT1.ASPMX.L.GOOGLE.COM.", "google"),
        ("aspmx2.googlemail.com.", "google"),
        ("contoso-com.mail.protection.outlook.com.", "microsoft"),
        ("contoso-com.b-v1.mx.microsoft.", "microsoft"),
        ("mta5.am0.yahoodns.net.", "yahoo"),
        ("mx01.mail.icloud.com.", "apple"),
        ("mx00.kundenserver.de.", "ionos"),
        ("mx1.mail.ovh.net.", "ovh"),
        ("mxa-00000000.gslb.pphosted.com.", "proofpoint"),
        # Somebody else's names that only look alike.
        ("mx.notgoogle.com.", "contoso.com"),
        ("google.com.example.org.", "contoso.com"),
        ("mx.contoso.com.", "contoso.com"),
    ],
)
def test_a_domain_belongs_to_who_takes_in_its_mail(exchange, group):
    assert group_by_exchanges("contoso.com", [exchange])[0] == group


def test_the_first_exchanger_that_is_known_decides():
    known = ["filter.contoso.com.", "contoso-com.mail.protection.outlook.com."]
    assert group_by_exchanges("contoso.com", known) == ("microsoft", known[1].rstrip("."))
    assert group_by_exchanges("contoso.com", []) == ("contoso.com", "")


@pytest.mark.parametrize(
    ("domain", "group"),
    [
        ("gmail.com", "google"),
        ("googlemail.com", "google"),
        ("hotmail.co.uk", "microsoft"),
        ("live.nl", "microsoft"),
        ("yahoo.com.br", "yahoo"),
        ("web.de", "gmx"),
        ("hotmail.contoso.com", None),
        ("hotmail.example.org", None),
        ("live.my.city.nl", None),
        ("contoso.com", None),
        ("localhost", None),
    ],
)
def test_free_mailboxes_are_known_without_dns(domain, group):
    assert well_known_group(domain) == group


def test_an_addresss_domain_is_in_lower_case():
    assert domain_of("Ada@GMail.com") == "gmail.com"


@pytest.mark.parametrize("domain", ["a.test", "mail.example.org", "localhost", "x.invalid", "a"])
def test_names_that_are_reserved_are_not_asked_for(domain):
    assert not can_be_asked(domain)


# ---------------------------------------------------------------------------------- the look-ups


def remember(now, *names: str) -> None:
    ReceivingDomain.objects.bulk_create(
        ReceivingDomain(name=name, group=name, look_up_at=now) for name in names
    )


def group(name: str) -> str:
    return ReceivingDomain.objects.get(pk=name).group


@pytest.mark.django_db
def test_the_domains_of_new_readers_are_gathered_and_each_reader_is_looked_at_once(
    clock, monkeypatch
):
    monkeypatch.setattr(exchanges, "READERS_AT_ONCE", 3)

    def subscribe(*addresses):
        for address in addresses:
            Subscriber.objects.create(email=address)

    subscribe("a@contoso.com", "b@Contoso.com", "c@gmail.com", "d@fabrikam.com")
    assert exchanges.gather(clock, LONG) == 4
    ReceivingDomain.objects.filter(pk="contoso.com").update(group="google")
    subscribe("e@contoso.com", "f@tailspin.com")
    assert exchanges.gather(clock, LONG) == 2
    assert exchanges.gather(clock, LONG) == 0
    assert dict(ReceivingDomain.objects.values_list("name", "group")) == {
        "contoso.com": "google",
        "gmail.com": "gmail.com",
        "fabrikam.com": "fabrikam.com",
        "tailspin.com": "tailspin.com",
    }
    assert exchanges.gather(clock, timedelta(0)) == 0


@pytest.mark.django_db
def test_what_is_due_is_looked_up_once_a_month(clock):
    remember(clock(), "contoso.com", "fabrikam.com", "gmail.com", "a.example")
    asked = []

    def ask(domain):
        asked.append(domain)
        return ["aspmx.l.google.com."] if domain == "contoso.com" else ["mx.fabrikam.com."]

    assert look_up_due(ask, clock, LONG) == 4
    assert sorted(asked) == ["contoso.com", "fabrikam.com"]
    assert (group("contoso.com"), group("fabrikam.com")) == ("google", "fabrikam.com")
    assert (group("gmail.com"), group("a.example")) == ("google", "a.example")
    assert ReceivingDomain.objects.get(pk="contoso.com").exchange == "aspmx.l.google.com"
    clock.advance(days=29)
    assert look_up_due(ask, clock, LONG) == 0
    clock.advance(days=2)
    assert look_up_due(ask, clock, LONG) == 4


@pytest.mark.django_db
def test_a_failure_leaves_the_group_as_it_was_and_is_tried_again(clock):
    remember(clock(), "contoso.com")
    ReceivingDomain.objects.update(group="google")

    def fail(domain):
        raise LookUpError("SERVFAIL")

    assert look_up_due(fail, clock, LONG) == 1
    assert group("contoso.com") == "google"
    assert look_up_due(fail, clock, LONG) == 0
    clock.advance(hours=7)
    # It has moved, or a former look was wrong.
    assert look_up_due(lambda domain: [], clock, LONG) == 1
    assert group("contoso.com") == "contoso.com"


@pytest.mark.django_db
def test_look_ups_end_with_their_time(clock):
    remember(clock(), *(f"d{n}.com" for n in range(25)))

    def ask(domain):
        clock.advance(seconds=1)
        return []

    assert look_up_due(ask, clock, timedelta(seconds=5)) == exchanges.AT_ONCE


@pytest.mark.django_db
def test_a_group_is_what_dns_said_or_what_is_well_known_or_the_domain(clock):
    remember(clock(), "contoso.com", "fabrikam.com", "hotmail.com")
    look_up_due(lambda domain: ["aspmx.l.google.com."], clock, LONG)
    domains = {"contoso.com", "hotmail.com", "outlook.com", "unheard-of.com"}
    assert groups.groups_of(domains) == {
        "contoso.com": "google",
        "hotmail.com": "microsoft",
        "outlook.com": "microsoft",
        "unheard-of.com": "unheard-of.com",
    }


class Resolver(dns.resolver.Resolver):
    """Answers without a network."""

    def __init__(self, answer) -> None:
        super().__init__(configure=False)
        self.answer, self.asked = answer, []

    def resolve(self, qname, rdtype, **kwargs):
        self.asked.append((qname, rdtype, kwargs["lifetime"]))
        if isinstance(self.answer, Exception):
            raise self.answer
        return [dns.rdata.from_text("IN", "MX", text) for text in self.answer]


def test_dns_is_asked_for_the_whole_name_and_the_preferred_exchanger_comes_first():
    resolver = Resolver(["20 b.example.", "5 a.example."])
    assert from_dns(resolver)("contoso.com") == ["a.example.", "b.example."]
    assert resolver.asked == [("contoso.com.", "MX", 5.0)]


@pytest.mark.parametrize("none", [dns.resolver.NXDOMAIN(), dns.resolver.NoAnswer])
def test_a_domain_without_exchangers_has_none(none):
    if isinstance(none, type):
        none = none.__new__(none)
    assert from_dns(Resolver(none))("contoso.com") == []


@pytest.mark.parametrize("error", [Timeout(), OSError("no network")])
def test_a_resolver_in_trouble_is_no_answer(error):
    with pytest.raises(LookUpError):
        from_dns(Resolver(error))("contoso.com")


def test_a_name_that_is_none_is_no_answer():
    with pytest.raises(LookUpError):
        from_dns(dns.resolver.Resolver(configure=False))("a" * 64 + ".com")


@pytest.mark.django_db
def test_the_settings_may_forbid_look_ups(settings, clock, monkeypatch):
    monkeypatch.setattr(exchanges, "from_dns", lambda: pytest.fail("DNS was asked"))
    settings.DELIVERY = settings.DELIVERY | {"LOOK_UP_EXCHANGES": False}
    assert tasks.look_up_domains() == "the settings say no"
