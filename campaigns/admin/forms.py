"""The forms with which a person writes, tests and sends a campaign."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.admin.widgets import AutocompleteSelect
from django.core.exceptions import ValidationError
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from unfold.widgets import (
    UnfoldAdminAutocompleteModelChoiceFieldWidget,
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from campaigns.addresses import normalise_address
from campaigns.admin.lists import subscribed_counts
from campaigns.conf import provider_aliases
from campaigns.models import Campaign, MailingList, Subscriber, Subscription
from campaigns.preflight.letter_checks import CLIPPED_AT

MOST_TEST_ADDRESSES = 10
# write.js fills in the numbers while somebody types.
CHARACTERS_COUNTED = _("{characters} of about {most} characters that mail programs show.")
BYTES_COUNTED = _("{characters} characters, {size} KB. Gmail clips a letter at {most} KB.")


class ListChoice(forms.ModelMultipleChoiceField):
    """Lists with the number of their readers, counted in one query."""

    widget = UnfoldAdminCheckboxSelectMultipleWidget

    def label_from_instance(self, obj: Any) -> str:
        readers = self.counts.get(obj.pk, 0)
        return f"{obj.name} ({readers:,})"

    counts: dict[int, int] = {}


class CampaignForm(forms.ModelForm):
    """What a person writes. Addresses are normalised; the letter itself is preflight's affair."""

    include_lists = ListChoice(
        label=_("To the readers of"), queryset=MailingList.objects.all(), required=False
    )
    exclude_lists = ListChoice(
        label=_("But not to those of"), queryset=MailingList.objects.all(), required=False
    )
    provider = forms.ChoiceField(label=_("Provider"), widget=UnfoldAdminSelectWidget)

    class Meta:
        model = Campaign
        fields = [
            "name",
            "subject",
            "preheader",
            "from_name",
            "from_email",
            "reply_to",
            "include_lists",
            "exclude_lists",
            "provider",
            "priority",
            "on_doubt",
            "html",
            "text",
        ]
        widgets = {
            "subject": UnfoldAdminTextInputWidget(
                {"data-count-characters": "60", "data-count-words": CHARACTERS_COUNTED}
            ),
            "preheader": UnfoldAdminTextInputWidget(
                {"data-count-characters": "100", "data-count-words": CHARACTERS_COUNTED}
            ),
            "html": UnfoldAdminTextareaWidget(
                {
                    "class": "pp-code",
                    "rows": 26,
                    "spellcheck": "false",
                    "data-count-bytes": str(CLIPPED_AT),
                    "data-count-words": BYTES_COUNTED,
                }
            ),
            "text": UnfoldAdminTextareaWidget({"class": "pp-code", "rows": 10}),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        aliases = provider_aliases()
        # A provider that left the settings stays visible; preflight says what is wrong with it.
        if self.instance.provider and self.instance.provider not in aliases:
            aliases.append(self.instance.provider)
        choices = [(alias, alias) for alias in aliases]
        self.fields["provider"].choices = choices  # type: ignore[attr-defined]
        lists = list(MailingList.objects.all())
        counts = subscribed_counts([mailing_list.pk for mailing_list in lists])
        for name in ("include_lists", "exclude_lists"):
            self.fields[name].counts = counts  # type: ignore[attr-defined]

    def clean_from_email(self) -> str:
        return normalise_address(self.cleaned_data["from_email"])

    def clean_reply_to(self) -> str:
        address = self.cleaned_data["reply_to"]
        return normalise_address(address) if address else ""


class ReaderChoice(UnfoldAdminAutocompleteModelChoiceFieldWidget, AutocompleteSelect):
    """Select2 over the admin's autocomplete view, which asks for permission to see subscribers."""

    def __init__(self) -> None:
        field = Subscription._meta.get_field("subscriber")
        AutocompleteSelect.__init__(self, field, admin.site)


class ReaderForm(forms.Form):
    """As whom a letter is filled in: one subscriber, found by the beginning of the address."""

    reader = forms.ModelChoiceField(
        queryset=Subscriber.objects.all(), required=False, widget=ReaderChoice
    )


class SendTestForm(forms.Form):
    """To whom test letters go, and as whom they are filled in."""

    addresses = forms.CharField(
        label=_("send to"),
        help_text=_("1 to 10 addresses, one per line or with commas between them."),
        widget=UnfoldAdminTextareaWidget({"rows": 4}),
    )

    def clean_addresses(self) -> list[str]:
        raw = [part for part in re.split(r"[\s,;]+", self.cleaned_data["addresses"]) if part]
        if not raw:
            raise ValidationError(_("At least one address, please."))
        # Before the parser sees them: a pasted mailing list is an accident.
        if len(raw) > MOST_TEST_ADDRESSES:
            raise ValidationError(
                _("At most %(most)d addresses; these are %(count)d.")
                % {"most": MOST_TEST_ADDRESSES, "count": len(raw)}
            )
        found: dict[str, str] = {}
        errors = []
        for part in raw:
            try:
                address = normalise_address(part)
            except ValidationError as error:
                errors.append(f"{part[:80]}: {' '.join(error.messages)}")
            else:
                found.setdefault(address.lower(), address)
        if errors:
            raise ValidationError(errors)
        return list(found.values())


class SendForm(forms.Form):
    """The person's word that the warnings were seen. ``warnings``: the codes that hold now."""

    seen = forms.CharField(required=False)

    def __init__(self, *args: Any, warnings: list[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.warnings = warnings

    def clean_seen(self) -> str:
        # The tick carries the codes that the page showed: a warning that came up since is new.
        if set(self.warnings) - set(self.cleaned_data["seen"].split(",")):
            raise ValidationError(_("Please tick that you have seen the warnings."))
        return self.cleaned_data["seen"]


class ScheduleForm(SendForm):
    """When it shall start, in the site's time zone."""

    at = forms.DateTimeField(
        label=_("Date and time"),
        error_messages={
            "required": _("Please choose a date and a time."),
            "invalid": _("This is no date and time."),
        },
    )

    def clean_at(self) -> datetime:
        at = self.cleaned_data["at"]
        if at <= timezone.now():
            raise ValidationError(_("This moment has passed. To send at once, choose Send now."))
        return at
