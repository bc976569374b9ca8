"""How it is sent: the queue, its history, and the state that all processes and hosts share."""

from __future__ import annotations

import json
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from campaigns.models import Campaign, Edition, MailingList, Subscriber
from delivery.states import UNUSUAL, WAITING, DeliveryStatus


class Delivery(models.Model):
    """One letter to one reader: its place in the queue and, later, its fate.

    ``claim_key`` fences: every write of a worker names the key under which it holds the row, and
    a worker whose lease ran out finds no such row. ``due_at`` matters while it waits.
    The accepted attempt stands here (``code``, ``reply``, ``settled_at``); every other attempt
    has an Attempt row of its own, so that a million good letters cost no second million rows.
    """

    # Campaign, edition and list are the same in whole pages of the audience, and PostgreSQL would
    # look each up for each letter, two fifths of the time of filling: Django keeps these
    # references, and PostgreSQL those of the campaign's totals, which the same transaction writes.
    campaign = models.ForeignKey(
        Campaign,
        on_delete=models.CASCADE,
        related_name="deliveries",
        db_index=False,
        db_constraint=False,
    )
    edition = models.ForeignKey(
        Edition, on_delete=models.PROTECT, related_name="+", db_index=False, db_constraint=False
    )
    # None: a test letter filled with example values, or a reader who was erased since.
    subscriber = models.ForeignKey(
        Subscriber, on_delete=models.SET_NULL, null=True, related_name="deliveries"
    )
    # The list through which the reader was chosen: gives List-Id. None for test letters.
    mailing_list = models.ForeignKey(
        MailingList,
        on_delete=models.SET_NULL,
        null=True,
        related_name="+",
        db_index=False,
        db_constraint=False,
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
    # What the partial indexes look at, instead of the status: a move that changes no column of any
    # index is a HOT update on PostgreSQL, and no move of a usual letter changes either of these.
    # Plain columns, which each move writes (``of_state``): PostgreSQL reads the expression of a
    # generated one anew for each statement, a tenth of an exchange.
    # Waiting, and in no page of the queue (QueuePage).
    waits_alone = models.BooleanField(default=False, editable=False)
    # The status, where it is final and not the normal case. NULL otherwise: any comparison shows
    # databases that the partial index will do.
    unusual = models.CharField(max_length=11, null=True, editable=False)  # noqa: DJ001

    class Meta:
        verbose_name = _("delivery")
        verbose_name_plural = _("deliveries")
        permissions = [
            ("ask_why", _("Can ask why a reader got a letter or not")),
            ("resolve_doubt", _("Can decide what becomes of letters in doubt")),
        ]
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
            models.Index(
                fields=["campaign", "due_at", "id"],
                condition=Q(waits_alone=True),
                name="delivery_alone",
            ),
            # Everything that a person looks for and that is not the normal case.
            models.Index(
                fields=["campaign", "unusual", "id"],
                condition=Q(unusual__isnull=False),
                name="delivery_unusual",
            ),
            models.Index(
                fields=["campaign", "id"], condition=Q(is_test=True), name="delivery_tests"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.rcpt_to} ({self.get_status_display()})"

    @staticmethod
    def of_state(status: DeliveryStatus) -> dict[str, Any]:
        """The columns that a move to this state writes. What waits again waits alone."""
        return {
            "status": status.value,
            "waits_alone": status in WAITING,
            "unusual": status.value if status in UNUSUAL else None,
        }


class QueuePage(models.Model):
    """Letters of one campaign that no claim has come to yet: QUEUED, and due since ``due_at``.

    They are those of the campaign from ``next_id`` to ``last_id`` that do not wait alone; a claim
    takes them in that order and moves the mark. One row for a thousand letters, where an index of
    what waits would be written for each, when it comes and when it goes (delivery/queue_pages.py).
    """

    campaign = models.ForeignKey(
        Campaign, on_delete=models.CASCADE, related_name="+", db_index=False
    )
    next_id = models.BigIntegerField()
    last_id = models.BigIntegerField()
    due_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["campaign", "id"], name="queue_page_in_order")]

    def __str__(self) -> str:
        return f"{self.campaign_id}: {self.next_id} to {self.last_id}"


class Claim(models.Model):
    """Which letters one claim of a worker took: where to look for what it holds.

    Whether it still holds them is what their rows say (``claim_key`` and status). An index on the
    claim key would say the same, and be written at two moves of every letter.
    """

    claim_key = models.BigIntegerField(db_index=True)
    provider = models.CharField(max_length=60)
    # A JSON list: both databases read it.
    delivery_ids = models.TextField()

    def __str__(self) -> str:
        return f"{self.claim_key}: {self.delivery_ids}"

    @classmethod
    def letters(cls, **conditions: int) -> list[int]:
        """The ids of all letters of these claims; some of them may be in other hands, or in
        nobody's, meanwhile."""
        claims = cls.objects.filter(**conditions).values_list("delivery_ids", flat=True)
        return [delivery_id for ids in claims for delivery_id in json.loads(ids)]


class AssignedMessageId(models.Model):
    """A Message-ID that a provider gave a letter in place of ours (delivery/message_ids.py)."""

    delivery = models.ForeignKey(Delivery, on_delete=models.CASCADE, related_name="+")
    message_id = models.CharField("Message-ID", max_length=320, db_index=True)

    class Meta:
        verbose_name = _("assigned Message-ID")
        verbose_name_plural = _("assigned Message-IDs")

    def __str__(self) -> str:
        return self.message_id


class SuppressionDue(models.TextChoices):
    """What becomes of an address that a refusal condemned (delivery/guard_rails.py)."""

    NONE = "", _("Condemns no address")
    DUE = "due", _("Suppressed once the circuit breaker has not tripped")
    HELD = "held", _("Held back: part of a burst")
    DONE = "done", _("Suppressed")
    DROPPED = "dropped", _("Let be by a person")


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
    # Of a refusal: how many letters of the campaign had their last answer before this one. So
    # "ten in a row" can be asked without a row for each letter that was accepted.
    answered_before = models.BigIntegerField(null=True)
    suppression = models.CharField(
        max_length=7, choices=SuppressionDue.choices, default=SuppressionDue.NONE, blank=True
    )

    class Meta:
        verbose_name = _("attempt")
        verbose_name_plural = _("attempts")
        ordering = ["id"]
        indexes = [
            models.Index(
                fields=["suppression", "id"],
                condition=Q(suppression__in=["due", "held"]),
                name="attempt_suppression",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.outcome}: {self.reply[:60]}"


class Resolution(models.Model):
    """How a doubt ended: by evidence, by a person or by its campaign's policy. Never changed."""

    class Means(models.TextChoices):
        EVIDENCE = "evidence", _("Evidence")
        PERSON = "person", _("A person's decision")
        POLICY = "policy", _("The campaign's policy")

    delivery = models.ForeignKey(Delivery, on_delete=models.CASCADE, related_name="resolutions")
    at = models.DateTimeField(_("when"))
    means = models.CharField(_("by"), max_length=8, choices=Means.choices)
    # SENT: it had been taken. QUEUED: it was sent again.
    status = models.CharField(_("led to"), max_length=11, choices=DeliveryStatus.choices)
    because = models.CharField(_("because"), max_length=300, blank=True)
    by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        verbose_name = _("resolution")
        verbose_name_plural = _("resolutions")
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.delivery_id} -> {self.status} ({self.means})"


class Alert(models.Model):
    """Something that a person must know, told once for each cause (delivery/alerts.py)."""

    class Kind(models.TextChoices):
        BREAKER = "breaker", _("Letters fail alike")
        RAIL = "rail", _("A guard rail was passed")
        STALE = "stale", _("A campaign was not started late")
        PROVIDER = "provider", _("A provider is stopped")
        GROUP = "group", _("A group of domains refuses us")
        INSTALLATION = "installation", _("Sending is off")
        # Raised by bounces: refusals that are about us, forged reports, a mailbox that fails.
        RETURNED = "returned", _("What came back")

    kind = models.CharField(_("kind"), max_length=12, choices=Kind.choices)
    # Names the cause: no second alert while the first is open.
    cause = models.CharField(max_length=200)
    campaign = models.ForeignKey(
        Campaign, on_delete=models.CASCADE, null=True, blank=True, related_name="alerts"
    )
    title = models.CharField(_("title"), max_length=200)
    text = models.TextField(_("text"))
    at = models.DateTimeField(_("when"))
    resolved_at = models.DateTimeField(_("over since"), null=True, blank=True)
    mailed_at = models.DateTimeField(_("mailed"), null=True, blank=True)
    posted_at = models.DateTimeField(_("posted"), null=True, blank=True)
    # Failed tries to tell it, of either way.
    failures = models.PositiveSmallIntegerField(default=0)
    seen_by = models.ManyToManyField(
        settings.AUTH_USER_MODEL, related_name="+", blank=True, verbose_name=_("seen by")
    )

    class Meta:
        verbose_name = _("alert")
        verbose_name_plural = _("alerts")
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["cause"], condition=Q(resolved_at__isnull=True), name="alert_once_per_cause"
            ),
        ]
        permissions = [("decide_suppressions", _("Can decide about suppressions held back"))]

    def __str__(self) -> str:
        return self.title


class Installation(models.Model):
    """Which installation this database belongs to: one row (delivery/installation.py).

    ``beat`` only grows, and each host remembers the last one it saw: a database that counts less
    was restored from a backup.
    """

    identity = models.CharField(max_length=64, unique=True)
    beat = models.BigIntegerField(default=0)
    # A person's word, given in the admin, that this host may send; used once.
    adopt_host = models.CharField(max_length=255, blank=True)
    adopt_until = models.DateTimeField(null=True)

    class Meta:
        verbose_name = _("installation")
        permissions = [("adopt_installation", _("Can turn sending on for a host"))]

    def __str__(self) -> str:
        return self.identity


class UnclassifiedReply(models.Model):
    """A reply that no rule of delivery/replies knows by its words, and how often it came.

    ``text`` is without addresses, ids and numbers; ``rule`` is the default that decided.
    """

    phase = models.CharField(_("phase"), max_length=12)
    code = models.PositiveSmallIntegerField(_("code"))
    text = models.CharField(_("reply"), max_length=200)
    rule = models.CharField(_("taken for"), max_length=60)
    count = models.PositiveIntegerField(_("times"))
    first_seen = models.DateTimeField(_("first seen"))
    last_seen = models.DateTimeField(_("last seen"))

    class Meta:
        verbose_name = _("unclassified reply")
        verbose_name_plural = _("unclassified replies")
        constraints = [
            models.UniqueConstraint(fields=["phase", "code", "text"], name="unclassified_once"),
        ]

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


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
    # Until when a group of domains waits or is slow here; and a number that grows whenever one
    # begins to: letters that were claimed before may not leave (statements.MAY_LEAVE).
    groups_held_until = models.DateTimeField(null=True)
    groups_held = models.PositiveBigIntegerField(default=0)
    # The moment for which a task is queued that starts workers again; one at a time.
    wake_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name = _("provider")
        verbose_name_plural = _("providers")
        permissions = [
            ("resume_provider", _("Can open a paused provider")),
            ("test_provider", _("Can send a test letter through a provider")),
        ]

    def __str__(self) -> str:
        return self.alias


class ReceivingDomain(models.Model):
    """A domain in our readers' addresses, and the group that takes in its mail (receiving.py)."""

    name = models.CharField(_("domain"), max_length=253, primary_key=True)
    # The domain itself until its exchangers were looked up, and where nobody knows them.
    group = models.CharField(_("group"), max_length=253)
    # The exchanger that decided about the group.
    exchange = models.CharField(_("mail exchanger"), max_length=253, blank=True)
    look_up_at = models.DateTimeField(_("looked up again"), db_index=True)

    class Meta:
        verbose_name = _("receiving domain")
        verbose_name_plural = _("receiving domains")
        indexes = [models.Index(fields=["group", "name"], name="receiving_domain_by_group")]

    def __str__(self) -> str:
        return self.name


class DomainWalk(models.Model):
    """How far readers were walked through for their domains: one row (delivery/exchanges.py)."""

    up_to = models.BigIntegerField(default=0)

    class Meta:
        verbose_name = _("walk through readers' domains")

    def __str__(self) -> str:
        return str(self.up_to)


class GroupState(models.Model):
    """A group of receiving domains that asked a provider's letters to wait (delivery/groups.py)."""

    provider = models.CharField(_("provider"), max_length=60)
    group = models.CharField(_("group"), max_length=253)
    # Nothing until then. The microsecond is this row's own: it marks the letters that wait for it.
    paused_until = models.DateTimeField(_("paused until"), null=True, blank=True)
    # One letter an interval until then; the next not before ``next_at``.
    slow_until = models.DateTimeField(_("slow until"), null=True, blank=True)
    next_at = models.DateTimeField(null=True)
    # Letters that wait for their turn have moments up to here.
    turns_until = models.DateTimeField(null=True)
    because = models.TextField(_("because"), blank=True)
    rule = models.CharField(_("rule"), max_length=60, blank=True)
    since = models.DateTimeField(_("since"), null=True, blank=True)
    # A person opened the group: letters with this moment are called back.
    call_back = models.DateTimeField(null=True)

    class Meta:
        verbose_name = _("group of domains")
        verbose_name_plural = _("groups of domains")
        constraints = [
            models.UniqueConstraint(fields=["provider", "group"], name="group_once_per_provider"),
        ]
        permissions = [("resume_group", _("Can open a paused group of domains"))]

    def __str__(self) -> str:
        return f"{self.group} ({self.provider})"


class MailboxState(models.Model):
    """A mailbox that senders and readers share, and its silence (delivery/mailboxes.py).

    ``mailbox``: its address in lower case; the row that its users lock, in turn.
    """

    mailbox = models.CharField(_("mailbox"), max_length=254, primary_key=True)
    # Of the last silence, also when it is over: the next one within a day lasts twice as long.
    silent_until = models.DateTimeField(_("silent until"), null=True)
    length = models.DurationField(null=True)
    because = models.TextField(_("because"), blank=True)
    # So many requests go alone, one after the other, before the mailbox is used as ever.
    on_trial = models.PositiveSmallIntegerField(default=0)

    class Meta:
        verbose_name = _("mailbox")
        verbose_name_plural = _("mailboxes")

    def __str__(self) -> str:
        return self.mailbox


class MailboxRequest(models.Model):
    """A request to a mailbox, under way or within the window in which it still counts."""

    mailbox = models.CharField(max_length=254)
    channel = models.CharField(max_length=20)
    began_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    octets = models.PositiveIntegerField()

    class Meta:
        verbose_name = _("request to a mailbox")
        indexes = [models.Index(fields=["mailbox", "began_at"], name="mailbox_requests")]

    def __str__(self) -> str:
        return f"{self.mailbox}: {self.channel}"


class ConnectionPool(models.Model):
    """How many connections a provider bears at this time, as it let us know. See slots.py."""

    scope = models.CharField(max_length=200, primary_key=True)
    # None: as many as the settings allow.
    reduced_to = models.PositiveSmallIntegerField(null=True)
    changed_at = models.DateTimeField(null=True)
    cut_at = models.DateTimeField(null=True)
    # Letters accepted since the last change.
    accepted = models.PositiveIntegerField(default=0)
    cuts_at_the_floor = models.PositiveSmallIntegerField(default=0)

    class Meta:
        verbose_name = _("connection pool")

    def __str__(self) -> str:
        return self.scope


class ConnectionSlot(models.Model):
    """A connection that may be open. Pre-made rows: N rows allow N connections, anywhere.

    ``claim_key``: the lease of the worker that holds it; None while it is free.
    """

    scope = models.CharField(max_length=200)
    number = models.PositiveSmallIntegerField()
    claim_key = models.BigIntegerField(null=True)

    class Meta:
        verbose_name = _("connection slot")
        constraints = [
            models.UniqueConstraint(fields=["scope", "number"], name="connection_once_per_slot"),
        ]

    def __str__(self) -> str:
        return f"{self.scope}/{self.number}"


class RateBucket(models.Model):
    """A limit: the row that its askers lock, in turn.

    ``key`` carries the scope, the kind and the window. ``theoretical_arrival``: the moment of a
    smooth limit's next permit (GCRA).
    """

    key = models.CharField(max_length=200, primary_key=True)
    theoretical_arrival = models.DateTimeField(null=True)

    class Meta:
        verbose_name = _("rate bucket")

    def __str__(self) -> str:
        return self.key


class QuotaWindow(models.Model):
    """What counts against a limit (sliding log).

    Open permits: ``grant`` and ``claim_key`` say whose, and they count until they are answered.
    Answered ones: ``at`` is the latest moment at which they can have arrived, rounded up to a
    step of the log; they count for one window from then.
    """

    key = models.CharField(max_length=200)
    at = models.DateTimeField(null=True)
    permits = models.PositiveIntegerField()
    grant = models.BigIntegerField(null=True)
    claim_key = models.BigIntegerField(null=True)

    class Meta:
        verbose_name = _("quota window")
        indexes = [
            models.Index(fields=["key", "at"], name="quota_by_key_and_time"),
            models.Index(fields=["grant"], condition=Q(grant__isnull=False), name="quota_open"),
        ]

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
