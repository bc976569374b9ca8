"""Which receiving domains belong together: those whose mail one operator takes in.

Operators count what we send by their own machines, not by the domain in the address: Gmail's limit
is "based on the MX record domain" (support.google.com/a/answer/3726730). So a domain hosted at
Google is in Google's group. A domain that nobody here knows is a group of its own, which is
always right, if sometimes too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence

# Free mailboxes, before and without any look-up: (group, its domains, "*" for any end).
_DOMAINS: tuple[tuple[str, str], ...] = (
    ("google", "gmail.com googlemail.com"),
    ("microsoft", "outlook.* hotmail.* live.* msn.com"),
    ("yahoo", "yahoo.* ymail.com rocketmail.com aol.com aol.* netscape.net"),
    ("apple", "icloud.com me.com mac.com"),
    ("gmx", "gmx.* web.de mail.com"),
    ("orange", "orange.fr wanadoo.fr"),
    ("comcast", "comcast.net"),
)
# Mail exchangers, by the ends of their names, as those operators tell their customers to write
# them into DNS.
_EXCHANGES: tuple[tuple[str, str], ...] = (
    ("google", "google.com googlemail.com"),
    ("microsoft", "protection.outlook.com mx.microsoft"),
    ("yahoo", "yahoodns.net"),
    ("apple", "mail.icloud.com"),
    ("gmx", "gmx.net web.de mail.com"),
    ("ionos", "kundenserver.de ionos.com ionos.co.uk ionos.de"),
    ("ovh", "ovh.net"),
    ("orange", "orange.fr wanadoo.fr"),
    ("comcast", "comcast.net"),
    ("proofpoint", "pphosted.com ppe-hosted.com"),
    ("mimecast", "mimecast.com"),
)
# RFC 2606, RFC 6761, RFC 7686: names that no DNS answers for.
_RESERVED_ENDS = frozenset({"test", "example", "invalid", "localhost", "local", "onion"})
_RESERVED_DOMAINS = frozenset({"example.com", "example.net", "example.org"})

_BY_DOMAIN: dict[str, str] = {
    name: group for group, names in _DOMAINS for name in names.split() if "*" not in name
}
# "hotmail.*" means hotmail.com and hotmail.co.uk, never hotmail.example.org.
_BY_FIRST_LABEL: dict[str, str] = {
    name[:-2]: group for group, names in _DOMAINS for name in names.split() if name.endswith(".*")
}
_SECOND_LEVELS = frozenset({"co", "com", "net", "org"})
_BY_EXCHANGE: dict[str, str] = {
    name: group for group, names in _EXCHANGES for name in names.split()
}


def domain_of(address: str) -> str:
    """The domain of a normalised address, in lower case."""
    return address.rpartition("@")[2].lower()


def well_known_group(domain: str) -> str | None:
    """The group of a domain that is known without DNS; None for all others."""
    if domain in _BY_DOMAIN:
        return _BY_DOMAIN[domain]
    first, *ends = domain.split(".")
    is_national = len(ends) == 1 or (
        len(ends) == 2 and ends[0] in _SECOND_LEVELS and len(ends[1]) == 2
    )
    return _BY_FIRST_LABEL.get(first) if is_national else None


def group_by_exchanges(domain: str, exchanges: Sequence[str]) -> tuple[str, str]:
    """(group, the exchanger that says so) of a domain with these mail exchangers, the preferred
    one first; the domain itself, and "", where no operator is known."""
    for exchange in exchanges:
        labels = exchange.rstrip(".").lower().split(".")
        for start in range(len(labels)):
            if group := _BY_EXCHANGE.get(".".join(labels[start:])):
                return group, exchange.rstrip(".").lower()
    return domain, ""


def can_be_asked(domain: str) -> bool:
    """Whether DNS may know of a domain: not of names that are reserved for examples and tests."""
    labels = domain.split(".")
    is_reserved = labels[-1] in _RESERVED_ENDS or ".".join(labels[-2:]) in _RESERVED_DOMAINS
    return len(labels) > 1 and not is_reserved
