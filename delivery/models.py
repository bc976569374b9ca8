"""How it is sent: the queue, its history, and the state that all processes and hosts share."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from campaigns.models import Campaign, Edition, MailingList, Subscriber
from delivery.states import DeliveryStatus


class Delivery(models.Model):
    """One letter to one reader: its place in the queue and, later, its fate.

    ``claim_key`` fences: every write of a worker names the key under which it holds the row, and
    a worker whose lease ran out finds no such row. ``due_at`` matters while it waits.
    The accepted attempt stands here (``code``, ``reply``, ``settled_at``); every other attempt
    has an Attempt row of its own, so that a million good letters cost no second million rows.
    """

    campaign = models.ForeignKey(
        Campaign, on_delete=models.CASCADE, related_name="deliveries", db_index=False
    )
    edition = models.ForeignKey(Edition, on_delete=models.PROTECT, related_name="+", db_index=False)
    # None: a test letter filled with example values, or a reader who was erased since.
    subscriber = models.ForeignKey(
        Subscriber, on_delete=models.SET_NULL, null=True, related_name="deliveries"
    )
    # The list through which the reader was chosen: gives List-Id. None for test letters.
    mailing_list = models.ForeignKey(
        MailingList, on_delete=models.SET_NULL, null=True, related_name="+", db_index=False
    )
    rcpt_to = models.CharField(_("address"), max_length=254)
    address_key = models.CharField(max_length=254)
    status = models.CharField(
        _("status"),
        max_length=11,
        choices=DeliveryStatus.choices,
        default=DeliveryStatus.QUEUED,
    )
    is_test = models.BooleanField(_("test letter"), default=False)
    due_at = models.DateTimeField(_("due"))
    claim_key = models.BigIntegerField(null=True, editable=False)
    attempts = models.PositiveSmallIntegerField(_("attempts"), default=0)
    # The provider to which it was last handed over.
    provider = models.CharField(_("provider"), max_length=60, blank=True)
    handed_over_at = models.DateTimeField(_("handed over"), null=True)
    settled_at = models.DateTimeField(_("settled"), null=True)
    code = models.PositiveSmallIntegerField(_("code"), null=True)
    reply = models.TextField(_("last reply"), blank=True)
    queued_at = models.DateTimeField(_("queued"))

    class Meta:
        verbose_name = _("delivery")
        verbose_name_plural = _("deliveries")
        permissions = [("ask_why", _("Can ask why a reader got a letter or not"))]
        constraints = [
            models.UniqueConstraint(
                fields=["campaign", "subscriber"],
                condition=Q(is_test=False),
                name="delivery_once_per_subscriber",
            ),
            # Address first: the same index answers "what did this address get?". With the pattern
            # operators of PostgreSQL it also finds addresses by their beginning, which it could
            # not do in any locale but C.
            models.UniqueConstraint(
                fields=["address_key", "campaign"],
                opclasses=["varchar_pattern_ops", "int8_ops"],
                condition=Q(is_test=False),
                name="delivery_once_per_address",
            ),
        ]
        indexes = [
            # The claim: only waiting rows are in it, in the order in which they are taken.
            models.Index(
                fields=["campaign", "due_at", "id"],
                condition=Q(status__in=["queued", "deferred"]),
                name="delivery_waiting",
            ),
            models.Index(
                fields=["claim_key"],
                condition=Q(status__in=["claimed", "sending"]),
                name="delivery_in_hand",
            ),
            # Everything that a person looks for and that is not the normal case.
            models.Index(
                fields=["campaign", "status", "id"],
                condition=Q(
                    status__in=[
                        "unconfirmed",
                        "rejected",
                        "expired",
                        "bounced",
                        "suppressed",
                        "cancelled",
                    ]
                ),
                name="delivery_unusual",
            ),
            models.Index(
                fields=["campaign", "id"], condition=Q(is_test=True), name="delivery_tests"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.rcpt_to} ({self.get_status_display()})"


class Attempt(models.Model):
    """One hand-over that did not end in acceptance: what was answered, and what was made of it."""

    delivery = models.ForeignKey(Delivery, on_delete=models.CASCADE, related_name="attempt_log")
    at = models.DateTimeField(_("when"))
    provider = models.CharField(_("provider"), max_length=60)
    outcome = models.CharField(_("outcome"), max_length=12)
    phase = models.CharField(_("phase"), max_length=12)
    code = models.PositiveSmallIntegerField(_("code"), null=True)
    reply = models.TextField(_("reply"))
    rule = models.CharField(_("rule"), max_length=60, blank=True)
    # False for the provider's trouble, which is not the reader's.
    used_an_attempt = models.BooleanField(_("used an attempt"))
    status = models.CharField(_("led to"), max_length=11, choices=DeliveryStatus.choices)

    class Meta:
        verbose_name = _("attempt")
        verbose_name_plural = _("attempts")
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.outcome}: {self.reply[:60]}"


class ProviderState(models.Model):
    """What all hosts must know of a provider: pauses. It survives restarts."""

    alias = models.CharField(_("provider"), max_length=60, unique=True)
    paused_until = models.DateTimeField(_("paused until"), null=True, blank=True)
    # A configuration error: only a person ends it.
    stopped = models.BooleanField(_("stopped"), default=False)
    because = models.TextField(_("because"), blank=True)
    rule = models.CharField(_("rule"), max_length=60, blank=True)
    paused_at = models.DateTimeField(_("since"), null=True, blank=True)
    # How often in a row it was unavailable; each doubles the pause.
    failures = models.PositiveIntegerField(default=0)

    class Meta:
        verbose_name = _("provider")
        verbose_name_plural = _("providers")
        permissions = [("resume_provider", _("Can open a paused provider"))]

    def __str__(self) -> str:
        return self.alias


class RateBucket(models.Model):
    """A smooth limit (GCRA): the theoretical arrival time of the next permit.

    ``key`` carries the scope and the limit's parameters, so that a changed limit starts afresh.
    """

    key = models.CharField(max_length=200, primary_key=True)
    theoretical_arrival = models.DateTimeField()

    class Meta:
        verbose_name = _("rate bucket")

    def __str__(self) -> str:
        return self.key


class QuotaWindow(models.Model):
    """A grant under a cap (sliding log): so many permits at that time."""

    key = models.CharField(max_length=200)
    at = models.DateTimeField()
    permits = models.PositiveIntegerField()

    class Meta:
        verbose_name = _("quota window")
        indexes = [models.Index(fields=["key", "at"], name="quota_by_key_and_time")]

    def __str__(self) -> str:
        return f"{self.key}: {self.permits}"


class WorkerLease(models.Model):
    """A place in a provider's pool of workers. Pre-made rows: N rows allow N workers, anywhere."""

    provider = models.CharField(max_length=60)
    slot = models.PositiveSmallIntegerField()
    # None: free, and nothing left behind by its last holder.
    claim_key = models.BigIntegerField(null=True)
    holder = models.CharField(max_length=120, blank=True)
    expires_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name = _("worker lease")
        constraints = [
            models.UniqueConstraint(fields=["provider", "slot"], name="lease_once_per_slot"),
        ]

    def __str__(self) -> str:
        return f"{self.provider}/{self.slot}"
