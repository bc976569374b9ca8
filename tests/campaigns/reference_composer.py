"""The slow composer: the same letter by the standard library, for comparison only."""

from __future__ import annotations

from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP

from minijinja import Environment

from campaigns.header_fields import clean_name, clean_subject
from campaigns.letter import Addressee, LetterSource


def compose(
    source: LetterSource, addressee: Addressee, *, domain: str, sender: str
) -> EmailMessage:
    """The letter that render() must equal in meaning, field by field and part by part."""
    values = {
        "email": addressee.rcpt_to,
        "name": addressee.name,
        "language": addressee.language,
        "list_name": addressee.list_name,
        "unsubscribe_url": addressee.unsubscribe_url,
    }
    for name, value in addressee.attributes.items():
        values.setdefault(name, value)
    values = {name: value for name, value in values.items() if value != ""}

    message = EmailMessage(policy=SMTP)
    message["Date"] = addressee.date
    message["From"] = _address(source.from_name, source.from_email)
    if source.reply_to:
        message["Reply-To"] = _address("", source.reply_to)
    message["To"] = _address(addressee.name, addressee.rcpt_to)
    message["Subject"] = clean_subject(_fill(source.subject, values))
    message["Message-ID"] = addressee.message_id
    if addressee.list_label:
        message["List-Id"] = f"<{addressee.list_label}.{domain}>"
    message["Feedback-ID"] = f"c{addressee.campaign_id}:{addressee.list_label or 'test'}:{sender}"
    if addressee.unsubscribe_url:
        message["List-Unsubscribe"] = f"<{addressee.unsubscribe_url}>"
        message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    message.set_content(_fill(source.text, values), cte="base64")
    message.add_alternative(_fill(source.html, values, html=True), subtype="html", cte="base64")
    return message


def _address(name: str, address: str) -> Address:
    return Address(clean_name(name), addr_spec=address)


def _fill(source: str, values: dict[str, object], *, html: bool = False) -> str:
    environment = Environment(
        auto_escape_callback=lambda _name: html, keep_trailing_newline=True, debug=False
    )
    return environment.render_str(source, "part", **values)
