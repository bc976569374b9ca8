"""What preflight wants to know of a filled HTML document: its links, images and odd elements."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urlsplit

from campaigns.html_scan import VOID_ELEMENTS

# Attributes that lead somewhere, or fetch something, when a reader clicks or looks.
LINK_ATTRIBUTES = frozenset({"href", "src", "action", "background", "formaction", "poster"})
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0\b", re.I)
_NO_TEXT = frozenset({"style", "script", "title", "head"})


@dataclass(frozen=True, slots=True)
class Link:
    """One address in the document. ``words``: what a reader sees of an <a>."""

    tag: str
    attribute: str
    address: str
    words: str = ""

    @property
    def scheme(self) -> str:
        match = re.match(r"\s*([A-Za-z][A-Za-z0-9+.-]*):", self.address)
        return match[1].lower() if match else ""

    @property
    def host(self) -> str:
        """Lower case; nothing where the address has none, or cannot be read."""
        try:
            return (urlsplit(self.address.strip()).hostname or "").lower()
        except ValueError:
            return ""

    @property
    def is_clicked(self) -> bool:
        return self.tag in {"a", "area", "form"}

    @property
    def leads_inside(self) -> bool:
        """Whether the host is an IP address, or a name that only our own network knows."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            name = self.host.rstrip(".")
            return bool(name) and (
                "." not in name or name.endswith((".localhost", ".local", ".internal"))
            )
        return True


@dataclass(slots=True)
class Document:
    """``hidden_text``: characters that no reader sees. ``elements``: names of all elements.
    ``handlers``: attributes with script in them, such as onclick."""

    links: list[Link] = field(default_factory=list)
    elements: set[str] = field(default_factory=set)
    handlers: set[str] = field(default_factory=set)
    images_without_alt: int = 0
    images: int = 0
    text: str = ""
    hidden_text: int = 0
    refreshes: bool = False


def read_document(html: str) -> Document:
    """Reads an HTML document that has been typeset (campaigns/trial.py) before."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.document


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.document = Document()
        self._open: list[tuple[str, bool]] = []  # element, and whether it hides what it holds
        self._link: tuple[str, list[str]] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        document = self.document
        document.elements.add(tag)
        document.handlers.update(name for name in attributes if name.startswith("on"))
        if tag not in VOID_ELEMENTS:
            hides = "hidden" in attributes or bool(_HIDDEN.search(attributes.get("style", "")))
            self._open.append((tag, hides))
        if tag == "img":
            document.images += 1
            document.images_without_alt += "alt" not in attributes
        if tag == "meta" and attributes.get("http-equiv", "").lower() == "refresh":
            document.refreshes = True
        if tag == "a" and "href" in attributes:
            self._link = (attributes["href"], [])
        for name in LINK_ATTRIBUTES & attributes.keys():
            if not (tag == "a" and name == "href"):
                document.links.append(Link(tag, name, attributes[name]))

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._end_link()
        for index in range(len(self._open) - 1, -1, -1):
            if self._open[index][0] == tag:
                del self._open[index:]
                break

    def handle_data(self, data: str) -> None:
        if self._link:
            self._link[1].append(data)
        if any(hides for _tag, hides in self._open):
            self.document.hidden_text += len(data.strip())
        elif not any(tag in _NO_TEXT for tag, _hides in self._open):
            self.document.text += data

    def close(self) -> None:
        super().close()
        self._end_link()

    def _end_link(self) -> None:
        if self._link:
            address, words = self._link
            self.document.links.append(Link("a", "href", address, "".join(words).strip()))
            self._link = None
