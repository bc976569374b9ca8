"""Text from outside (a file, a mail) on its way to a person's eyes."""

from __future__ import annotations


def visible(text: str) -> str:
    """The text line by line as it was, in which nothing gives orders to a terminal or turns the
    order of the characters round. Not escaped: for a page, that comes on top."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for character in text.replace("\r\n", "\n")
    )
