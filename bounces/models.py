"""What came back: the mails as they were, and what was read of them."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from campaigns.models import Campaign
from delivery.models import Delivery


class Verdict(models.TextChoices):
    """What became of a received mail. The first three are still open."""

    NEW = "new", _("Not examined yet")
    # It speaks of a letter whose own hand-over is not written down yet: examined again.
    WAITING = "waiting", _("Waiting for its letter")
    # It would mark somebody, and the breaker is open: examined again when a person closes it.
    HELD = "held", _("Held back")
    BOUNCE = "bounce", _("Bounce")
    NOTHING = "nothing", _("Report without a bounce")
    UNRECOGNISED = "unrecognised", _("Not recognised")
    FAILED = "failed", _("Could not be examined")


OPEN_VERDICTS = (Verdict.NEW, Verdict.WAITING, Verdict.HELD)


class ReceivedMail(models.Model):
    """One mail, stored before anything is made of it. Never deleted; ``raw`` is forgotten in time.

    (mailbox, uid validity, uid) is unique: a mail that is fetched twice is examined once.
    """

    mailbox = models.CharField(_("mailbox"), max_length=60)
    uid_validity = models.CharField(max_length=100)
    uid = models.CharField(max_length=255)
    received_at = models.DateTimeField(_("taken in"))
    # None: older than RAW_RETENTION_DAYS. Cut at LARGEST_MAIL_BYTES.
    raw = models.BinaryField(null=True)
    truncated = models.BooleanField(_("cut to size"), default=False)
    verdict = models.CharField(
        _("verdict"), max_length=12, choices=Verdict.choices, default=Verdict.NEW
    )
    # Begun, finished or not: a mail that kills its examiner is not tried for ever. The first one
    # begins as soon as the mail is stored.
    examinations = models.PositiveSmallIntegerField(default=1)
    examined_at = models.DateTimeField(_("examined"), null=True)
    # Dotted path of the detector that answered, and what it calls its version.
    detector = models.CharField(_("detector"), max_length=200, blank=True)
    detector_version = models.CharField(_("version"), max_length=60, blank=True)
    # Why nobody was marked, or what went wrong.
    remark = models.CharField(_("remark"), max_length=500, blank=True)
    sender = models.CharField(_("from"), max_length=200, blank=True)
    subject = models.CharField(_("subject"), max_length=200, blank=True)

    class Meta:
        verbose_name = _("received mail")
        verbose_name_plural = _("received mail")
        permissions = [("examine_again", _("Can examine a mail again and apply the result"))]
        constraints = [
            models.UniqueConstraint(
                fields=["mailbox", "uid_validity", "uid"], name="received_mail_once_per_uid"
            ),
        ]
        indexes = [
            # What the poller takes up again; nearly always empty.
            models.Index(
                fields=["mailbox", "id"],
                condition=Q(verdict__in=["new", "waiting", "held"]),
                name="received_mail_open",
            ),
            # What a person looks for: mail of which nothing was made.
            models.Index(fields=["verdict", "-id"], name="received_mail_by_verdict"),
            models.Index(
                fields=["received_at"],
                condition=Q(raw__isnull=False),
                name="received_mail_with_raw",
            ),
        ]

    def __str__(self) -> str:
        return self.subject or f"{self.mailbox}/{self.uid}"


class Kind(models.TextChoices):
    BOUNCE = "bounce", _("Bounce")
    COMPLAINT = "complaint", _("Complaint")


class BounceClassChoices(models.TextChoices):
    """bounces.classification.BounceClass for people."""

    HARD = "hard", _("Hard: the address is gone")
    SOFT = "soft", _("Soft: not this time")
    BLOCKED = "blocked", _("Blocked: ours to mend")
    UNDETERMINED = "undetermined", _("Undetermined")


class Bounce(models.Model):
    """One report of a mail. ``delivery`` is the letter that a signed token named; None: nobody's,
    and nobody was marked."""

    received_mail = models.ForeignKey(
        ReceivedMail, on_delete=models.CASCADE, related_name="bounces", verbose_name=_("mail")
    )
    delivery = models.ForeignKey(
        Delivery,
        on_delete=models.SET_NULL,
        null=True,
        related_name="bounces",
        verbose_name=_("delivery"),
    )
    campaign = models.ForeignKey(
        Campaign,
        on_delete=models.SET_NULL,
        null=True,
        related_name="bounces",
        db_index=False,
        verbose_name=_("campaign"),
    )
    kind = models.CharField(_("kind"), max_length=9, choices=Kind.choices, default=Kind.BOUNCE)
    # As the mail names it; behind an alias another one than the delivery's.
    recipient = models.CharField(_("recipient"), max_length=320, blank=True)
    # Lower case: what a person searches for, and what tells how often an address bounced.
    address_key = models.CharField(max_length=320, blank=True, db_index=True)
    domain = models.CharField(_("domain"), max_length=255, blank=True)
    action = models.CharField(_("action"), max_length=30, blank=True)
    status = models.CharField(_("status"), max_length=11, blank=True)
    bounce_class = models.CharField(
        _("class"), max_length=12, choices=BounceClassChoices.choices, blank=True
    )
    because = models.CharField(_("because"), max_length=300, blank=True)
    diagnostic = models.TextField(_("diagnostic"), blank=True)
    # Whether it moved its delivery to BOUNCED, and whether it suppressed the reader.
    counted = models.BooleanField(_("counted"), default=False)
    suppressed = models.BooleanField(_("suppressed"), default=False)
    # A later examination of the same mail read it otherwise: kept, and no longer counted.
    replaced = models.BooleanField(_("replaced"), default=False)
    # A person lifted the suppression that it led to.
    undone_at = models.DateTimeField(_("undone"), null=True)
    undone_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        related_name="+",
        verbose_name=_("undone by"),
    )
    at = models.DateTimeField(_("when"))

    class Meta:
        verbose_name = _("bounce")
        verbose_name_plural = _("bounces")
        indexes = [
            # What the charts count.
            models.Index(fields=["at", "domain", "bounce_class"], name="bounce_by_time"),
            models.Index(fields=["campaign", "-id"], name="bounce_by_campaign"),
            models.Index(fields=["bounce_class", "-id"], name="bounce_by_class"),
        ]

    def __str__(self) -> str:
        return f"{self.recipient} {self.status}".strip()


class MailboxState(models.Model):
    """What all hosts must know of a mailbox: who polls it, and whether it answers."""

    name = models.CharField(_("mailbox"), max_length=60, unique=True)
    last_polled_at = models.DateTimeField(_("last polled"), null=True)
    last_succeeded_at = models.DateTimeField(_("last read without trouble"), null=True)
    # Polls in a row that failed; each doubles the wait.
    failures = models.PositiveIntegerField(_("failures in a row"), default=0)
    last_error = models.CharField(_("last error"), max_length=500, blank=True)
    due_at = models.DateTimeField(_("not before"), null=True)
    # "": nobody polls it.
    lease_key = models.CharField(max_length=32, blank=True)
    leased_until = models.DateTimeField(null=True)
    # Where the next poll goes on, in the mailbox's own words (mailboxes.base.Resuming).
    position = models.TextField(blank=True)
    # Somebody told us of new mail: for this moment a poll is queued; one at a time.
    wanted_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name = _("bounce mailbox")
        verbose_name_plural = _("bounce mailboxes")

    def __str__(self) -> str:
        return self.name


class Watch(models.Model):
    """A place in a mailbox about which its far side tells us at once. See watches.py."""

    mailbox = models.CharField(_("mailbox"), max_length=60)
    # A folder, in the mailbox's own words.
    place = models.CharField(_("place"), max_length=255)
    # What the far side calls it.
    key = models.CharField(max_length=255, unique=True)
    # SHA-256 of the secret that every notification must bear; the secret itself is nowhere here.
    secret_digest = models.CharField(max_length=64)
    renew_at = models.DateTimeField(_("to be renewed"))
    expires_at = models.DateTimeField(_("ends"))

    class Meta:
        verbose_name = _("watch")
        verbose_name_plural = _("watches")
        constraints = [
            models.UniqueConstraint(fields=["mailbox", "place"], name="watch_once_per_place"),
        ]

    def __str__(self) -> str:
        return f"{self.mailbox}/{self.place}"


class Breaker(models.Model):
    """Counts mails with tokens that are not to be believed, and stops all marking when they come
    in a flood: then somebody tries, and a key may be known. One row, made when first needed.

    The count starts afresh a day after it began. A tripped breaker is closed by a person only.
    """

    FORGED_TOKENS = "forged tokens"

    name = models.CharField(_("breaker"), max_length=60, unique=True)
    count = models.PositiveIntegerField(_("counted"), default=0)
    counting_since = models.DateTimeField(_("counting since"))
    tripped_at = models.DateTimeField(_("tripped"), null=True)

    class Meta:
        verbose_name = _("breaker")
        verbose_name_plural = _("breakers")
        permissions = [("reset_breaker", _("Can close a tripped breaker"))]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def is_tripped(cls) -> bool:
        return cls.objects.filter(name=cls.FORGED_TOKENS, tripped_at__isnull=False).exists()

    @classmethod
    def add(cls, times: int, most: int, now: datetime) -> bool:
        """Counts; True when this tripped it. In the caller's transaction."""
        cls.objects.get_or_create(name=cls.FORGED_TOKENS, defaults={"counting_since": now})
        breaker = cls.objects.select_for_update().get(name=cls.FORGED_TOKENS)
        if now - breaker.counting_since > timedelta(days=1):
            breaker.count, breaker.counting_since = 0, now
        breaker.count += times
        trips = breaker.tripped_at is None and breaker.count >= most
        if trips:
            breaker.tripped_at = now
        breaker.save()
        return trips

    def reset(self, now: datetime) -> bool:
        """Closes it; False when it was not open."""
        return bool(
            Breaker.objects.filter(pk=self.pk, tripped_at__isnull=False).update(
                tripped_at=None, count=0, counting_since=now
            )
        )
