"""Checks of the letter as its readers get it, read back from the final bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from email import message_from_bytes, policy

from django.utils.translation import gettext_lazy as _

from campaigns.conf import campaign_settings
from campaigns.document import Document, Link, read_document
from campaigns.letter import Addressee, Letter, audit
from campaigns.preflight.findings import Finding

# Octets. Gmail shows no more of a letter's HTML, and with it cuts off the footer.
CLIPPED_AT = 102 * 1024
LARGE = 80 * 1024
LARGEST_LETTER = 500 * 1024
# Characters that may be hidden: what a preheader takes, and then some.
LONGEST_HIDDEN_TEXT = 450
MANY_HOSTS = 5

_SHORTENERS = frozenset({"bit.ly", "tinyurl.com", "t.co", "goo.gl", "ow.ly", "is.gd", "buff.ly"})
_ACTIVE = frozenset({"script", "iframe", "object", "embed", "applet", "base"})
_LEFT_OVER = re.compile(r"\{\{|\}\}|\{%|%\}|%%|\*\||\|\*")
_LOOKS_LIKE_HOST = re.compile(r"(?:https?://)?((?:[a-z0-9-]+\.)+[a-z]{2,})(?:[/?#:].*)?", re.I)


@dataclass(frozen=True)
class Proof:
    """The letter of one reader, read back from its bytes."""

    content: bytes
    subject: str
    html: str
    text: str
    document: Document


def letter_findings(letter: Letter, addressees: list[Addressee]) -> Iterator[Finding]:
    """What is wrong with the letters of these readers. LetterError when one cannot be written."""
    proofs = [_proof(letter, addressee) for addressee in addressees]
    yield from _unsubscribe(proofs, addressees[0].unsubscribe_url)
    # Each looks at all of them: a condition may show to one reader what another does not get.
    for check in (_links, _elements, _images, _sizes, _left_overs, _texts):
        yield from check(proofs)


def _proof(letter: Letter, addressee: Addressee) -> Proof:
    content = letter.render(addressee)
    audit(content)
    message = message_from_bytes(content, policy=policy.default)
    text, html = (part.get_content() for part in message.iter_parts())
    return Proof(content, str(message["Subject"]), html, text, read_document(html))


def _unsubscribe(proofs: list[Proof], url: str) -> Iterator[Finding]:
    if not all(any(_leads_to(link, url) for link in proof.document.links) for proof in proofs):
        yield Finding(
            "fail",
            "no_unsubscribe_link",
            _("The HTML has no unsubscribe link: {{ unsubscribe_url }} as the address of a link."),
        )
    if not all(url in proof.text for proof in proofs):
        yield Finding(
            "warn",
            "no_unsubscribe_link_in_text",
            _("The text part has no unsubscribe link: {{ unsubscribe_url }}."),
        )


def _leads_to(link: Link, url: str) -> bool:
    return link.tag == "a" and link.address.strip() == url


def _links(proofs: list[Proof]) -> Iterator[Finding]:
    ours = campaign_settings().base_url
    links = [
        link
        for proof in proofs
        for link in proof.document.links
        if not link.address.startswith((f"{ours}/", "#", "cid:"))
    ]
    for finding, applies in _LINK_TESTS:
        if found := sorted({link.address or "(empty)" for link in links if applies(link)}):
            yield replace(finding, detail=", ".join(found[:5]))
    hosts = {link.host for link in links if link.is_clicked and link.host}
    if len(hosts) > MANY_HOSTS:
        yield Finding(
            "warn",
            "many_hosts",
            _("The links lead to more than five hosts."),
            ", ".join(sorted(hosts)),
        )


def _is_misleading(link: Link) -> bool:
    shown = _LOOKS_LIKE_HOST.fullmatch(link.words)
    if link.scheme not in {"http", "https"} or not shown:
        return False
    return shown[1].lower().removeprefix("www.") != link.host.removeprefix("www.")


_LINK_TESTS: tuple[tuple[Finding, Callable[[Link], bool]], ...] = (
    (
        Finding(
            "fail",
            "bad_link",
            _("A link leads nowhere: only https, http, mailto and tel lead out of a letter."),
        ),
        lambda link: link.is_clicked and link.scheme not in {"https", "http", "mailto", "tel"},
    ),
    (
        Finding(
            "fail",
            "inside_link",
            _("A link leads to an IP address or to a name that only our own network knows."),
        ),
        lambda link: link.scheme in {"http", "https"} and link.leads_inside,
    ),
    (
        Finding("warn", "http_link", _("A link is not encrypted (http).")),
        lambda link: link.is_clicked and link.scheme == "http",
    ),
    (
        Finding(
            "warn", "shortened_link", _("A link hides behind a shortener, as those of spam do.")
        ),
        lambda link: link.host.removeprefix("www.") in _SHORTENERS,
    ),
    (
        Finding("warn", "misleading_link", _("A link shows one host and leads to another.")),
        _is_misleading,
    ),
)


def _elements(proofs: list[Proof]) -> Iterator[Finding]:
    documents = [proof.document for proof in proofs]
    elements = set().union(*(document.elements for document in documents))
    active = elements & _ACTIVE | set().union(*(document.handlers for document in documents))
    if active:
        yield Finding(
            "fail",
            "script",
            _("The HTML has elements that no mail program runs, and spam filters refuse."),
            ", ".join(sorted(active)),
        )
    if "form" in elements:
        yield Finding("warn", "form", _("The HTML has a form; most mail programs disable it."))
    if any(
        document.refreshes or any(link.tag == "link" for link in document.links)
        for document in documents
    ):
        yield Finding("warn", "external_style", _("The HTML loads or leads on to another page."))
    if any(document.hidden_text > LONGEST_HIDDEN_TEXT for document in documents):
        yield Finding("warn", "hidden_text", _("The HTML hides a long text from its readers."))


def _images(proofs: list[Proof]) -> Iterator[Finding]:
    documents = [proof.document for proof in proofs]
    if any(
        document.images and len(" ".join(document.text.split())) < 200 for document in documents
    ):
        yield Finding("warn", "image_only", _("The letter is mostly images, with little text."))
    if without_alt := max(document.images_without_alt for document in documents):
        yield Finding(
            "warn",
            "image_without_alt",
            _("An image has no alt text for readers who see no images."),
            str(without_alt),
        )
    sources = {
        link.scheme: link.address
        for document in documents
        for link in document.links
        if link.tag == "img"
    }
    if "http" in sources:
        yield Finding("warn", "http_image", _("An image is not encrypted (http)."), sources["http"])
    if "data" in sources:
        yield Finding(
            "warn", "data_image", _("An image is inside the HTML (data:); Gmail hides it.")
        )
    if "" in sources:
        yield Finding("fail", "bad_image", _("An image has no full address."), sources[""])


def _sizes(proofs: list[Proof]) -> Iterator[Finding]:
    largest = max(proofs, key=lambda proof: len(proof.html))
    octets = largest.html.encode("utf-8")
    kilobytes = f"{len(octets) / 1024:.0f} KB"
    if len(octets) > CLIPPED_AT:
        # Gmail shows the beginning only: is the way out of the list in it?
        shown = octets[:CLIPPED_AT].decode("utf-8", "ignore")
        cut_off = _unsubscribe_base() not in shown
        yield Finding(
            "fail" if cut_off else "warn",
            "html_clipped",
            _("Gmail cuts the HTML off at 102 KB, and with it the unsubscribe link.")
            if cut_off
            else _("Gmail cuts the HTML off at 102 KB."),
            kilobytes,
        )
    elif len(octets) > LARGE:
        yield Finding("warn", "html_large", _("The HTML is larger than 80 KB."), kilobytes)
    if len(largest.content) > LARGEST_LETTER:
        yield Finding("warn", "letter_large", _("The letter is larger than 500 KB."))


def _unsubscribe_base() -> str:
    """What every unsubscribe link begins with."""
    return f"{campaign_settings().base_url}/u/"


def _left_overs(proofs: list[Proof]) -> Iterator[Finding]:
    for proof in proofs:
        shown = "\n".join((proof.subject, proof.document.text, proof.text))
        if found := _LEFT_OVER.search(shown):
            start = max(found.start() - 20, 0)
            yield Finding(
                "fail",
                "left_over_tag",
                _("Something that looks like a merge field is left in the filled letter."),
                shown[start : found.end() + 20].strip(),
            )
            return


def _texts(proofs: list[Proof]) -> Iterator[Finding]:
    if any(not proof.subject.strip() for proof in proofs):
        yield Finding(
            "fail", "subject_empty_for_some", _("The subject is empty once it is filled in.")
        )
    if any(len(proof.text.strip()) < 20 for proof in proofs):
        yield Finding("warn", "text_short", _("The text part is all but empty."))
