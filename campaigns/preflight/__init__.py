"""What a person should know of a campaign before it is sent: what forbids it, and what to look at.

No check needs network or DNS. Each has a code of its own, and each code appears once, with
everything that it found in ``detail``. The letter is judged as its readers get it: filled for some
of them, and read back from its final bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

from django.utils.translation import gettext_lazy as _

from campaigns.editions import draft_edition
from campaigns.letter import letter_of
from campaigns.merge import LetterError
from campaigns.models import Campaign
from campaigns.preflight.campaign_checks import campaign_findings
from campaigns.preflight.field_checks import field_findings
from campaigns.preflight.findings import Finding
from campaigns.preflight.letter_checks import letter_findings
from campaigns.preflight.sample import Sample

__all__ = ["Finding", "preflight"]


def preflight(campaign: Campaign) -> list[Finding]:
    """Everything found, fails first."""
    sample = Sample(campaign)
    findings = [*campaign_findings(campaign, sample), *_findings_in_letter(campaign, sample)]
    return sorted(findings, key=lambda finding: finding.level != "fail")


def _findings_in_letter(campaign: Campaign, sample: Sample) -> Iterator[Finding]:
    if not campaign.html.strip():
        yield Finding("fail", "html_empty", _("The campaign has no HTML."))
        return
    try:
        edition = draft_edition(campaign)
        letter = letter_of(edition)
        # The child process fills it for the sample before this process does.
        draft_edition(campaign, [letter.merge_values(reader) for reader in sample.addressees])
        yield from field_findings(letter, edition, sample)
        yield from letter_findings(letter, sample.addressees)
    except LetterError as error:
        yield Finding("fail", "letter_error", _("The letter cannot be made."), str(error))
