"""The measured rule: the diagnostic's code first, a small safe set, no policy word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bounces.classification import ADDRESS_IS_GONE, BounceClass, classify, judge

HARD, SOFT = BounceClass.HARD, BounceClass.SOFT
BLOCKED, UNDETERMINED = BounceClass.BLOCKED, BounceClass.UNDETERMINED


@pytest.mark.parametrize(
    ("status", "diagnostic", "expected"),
    [
        ("5.1.1", "", HARD),
        ("5.1.2", "", HARD),
        ("5.1.3", "", HARD),
        ("5.1.6", "", HARD),
        ("5.1.10", "smtp;550 5.1.10 RESOLVER.ADR.RecipientNotFound", HARD),
        ("5.4.4", "X-Postfix; Host not found", HARD),
        # The diagnostic comes first, since 5.0.0 says nothing.
        ("5.0.0", "smtp; 550 5.1.1 no such user", HARD),
        ("5.0.0", "smtp; 550 no such user", UNDETERMINED),
        ("", "", UNDETERMINED),
        ("2.0.0", "", UNDETERMINED),
        # Contradictions: the softer one wins, whichever side it stands on.
        ("5.1.1", "smtp; 550 5.7.1 blacklisted", BLOCKED),
        ("5.1.1", "smtp; 552 5.2.2 over quota", SOFT),
        ("5.2.2", "smtp; 550 5.1.1 unknown", SOFT),
        ("4.4.7", "smtp; 550 5.1.1 unknown", SOFT),
        ("5.7.1", "smtp; 550 5.1.1 unknown", BLOCKED),
        ("5.1.0", "smtp; 550 5.1.1 unknown", HARD),
        # Not the reader's fault, or not for good.
        ("5.2.1", "smtp; 550 5.2.1 disabled", SOFT),
        ("5.2.2", "", SOFT),
        ("5.2.3", "", SOFT),
        ("4.4.1", "", SOFT),
        ("5.4.1", "smtp;550 5.4.1 Recipient address rejected: Access denied", SOFT),
        ("5.1.351", "", SOFT),
        ("5.4.6", "", SOFT),
        ("5.6.1", "", SOFT),
        # Ours to mend.
        ("5.7.1", "", BLOCKED),
        ("5.7.26", "", BLOCKED),
        ("4.7.0", "smtp; 421 4.7.0 [TSS04] deferred", BLOCKED),
        ("5.1.7", "", BLOCKED),
        ("5.1.8", "", BLOCKED),
        ("5.0.0", "smtp; 554 blocked using zen.dnsbl.example", BLOCKED),
        ("5.4.1", "smtp; 554 5.4.1 Relay access denied", BLOCKED),
        # Policy words beside a safe code, and names that only look like them.
        ("5.1.1", "smtp; 550 5.1.1 rejected as spam", BLOCKED),
        ("5.1.1", "smtp; 550 5.1.1 mailbox is full", SOFT),
        ("5.1.1", "smtp; host spamfilter.example.net said: 550 5.1.1 unknown", HARD),
        ("5.1.1", "smtp; 550 5.1.1 <policy@example.org> unknown", HARD),
        ("5.1.1", "smtp; 550 5.1.1 see https://example.org/spam-policy", HARD),
        # Exchange Online's wrapping: what is behind the arrow counts.
        ("5.0.350", "smtp;550 5.0.350 Remote server returned an error -> 550 5.1.1 gone", HARD),
        ("5.0.350", "smtp;550 5.0.350 Remote server returned an error -> 552 5.2.2 full", SOFT),
        ("5.0.350", "smtp;550 5.0.350 Remote server returned an error -> 550 no", UNDETERMINED),
        ("5.7.350", "smtp;550 5.7.350 detected as spam -> 550 5.1.1 gone", BLOCKED),
        # Numbers that are no codes.
        ("5.0.0", "smtp; 550 5.1.1.4 is the version", UNDETERMINED),
        ("5.0.0", "smtp; connect to 5.1.1.7: refused", UNDETERMINED),
    ],
)
def test_a_failure_has_its_class(status: str, diagnostic: str, expected: BounceClass) -> None:
    assert classify(status, diagnostic) is expected


@given(
    status=st.sampled_from(["", "5.0.0", "5.1.1", "4.4.7", "5.7.1", "5.2.2", "nonsense"]),
    diagnostic=st.text(max_size=300),
)
def test_only_the_safe_set_is_ever_hard(status: str, diagnostic: str) -> None:
    verdict = judge(status, diagnostic)
    assert verdict.because
    if verdict.bounce_class is HARD:
        assert any(str(code) in f"{status} {diagnostic}" for code in ADDRESS_IS_GONE)


@pytest.mark.parametrize("detail", range(100))
def test_no_policy_status_is_ever_hard(detail: int) -> None:
    assert classify(f"5.7.{detail}", "smtp; 550 unknown user") is BLOCKED
    assert classify(f"4.1.{detail}", "smtp; 550 5.1.1 unknown user") is not HARD
