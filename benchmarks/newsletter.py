"""The letter that is measured: 10 KB as it leaves, with name and unsubscribe URL merged."""

from __future__ import annotations

WORDS = "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor à côté. "
PARAGRAPH = f'<p style="margin:0 0 16px;font:16px/1.5 sans-serif">{WORDS * 2}</p>\n'
# 22 paragraphs and 30 lines of text make 10 KB in quoted-printable, header included.
HTML = (
    "<!DOCTYPE html><html><body><p>Dear {{ first_name | default('reader') }},</p>\n"
    + PARAGRAPH * 22
    + '<p>Sent to {{ email }}. <a href="{{ unsubscribe_url }}">Unsubscribe</a></p></body></html>\n'
)
TEXT = (
    "Dear {{ first_name | default('reader') }},\n\n"
    + f"{WORDS}\n" * 30
    + "\nSent to {{ email }}. Unsubscribe: {{ unsubscribe_url }}\n"
)
FROM_NAME = "Brand"
FROM_EMAIL = "news@example.com"
SUBJECT = "The news of the week"
