"""What is sent, and to whom. Row verbs are methods; every move names the state it leaves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.validators import validate_slug
from django.db import models, transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from campaigns.addresses import address_key, normalise_address
from campaigns.signals import campaign_moved
from campaigns.states import (
    CampaignStatus,
    OnDoubt,
    Priority,
    SubscriptionStatus,
    SuppressionReason,
    permitted_sources,
)

# Rows in one transaction: on SQLite it keeps every other writer waiting.
MOVED_AT_ONCE = 1000


def _pages(chosen: models.QuerySet[Any]) -> Iterator[list[int]]:
    """The ids of ``chosen`` in their order, MOVED_AT_ONCE at a time, in memory that does not depend
    on how many they are. What joins ``chosen`` meanwhile is left."""
    ids = chosen.order_by("pk").values_list("pk", flat=True)
    last, newest = 0, ids.last() or 0
    while page := list(ids.filter(pk__gt=last, pk__lte=newest)[:MOVED_AT_ONCE]):
        yield page
        last = page[-1]


class MailingList(models.Model):
    """Readers who asked for the same thing. ``label`` is the stable half of List-Id (RFC 2919):
    it never changes, while the name may."""

    name = models.CharField(_("name"), max_length=120, unique=True)
    label = models.CharField(
        _("label"),
        max_length=60,
        unique=True,
        validators=[validate_slug],
        help_text=_(
            "Part of the List-Id header; letters, digits and hyphens. Never changes later."
        ),
    )
    description = models.TextField(_("description"), blank=True)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    class Meta:
        verbose_name = _("list")
        verbose_name_plural = _("lists")
        ordering = ["name"]
        permissions = [("import_subscribers", _("Can import subscribers from a file"))]

    def __str__(self) -> str:
        return self.name


class Subscriber(models.Model):
    """One reader. ``email`` is what we write to; ``address_key`` makes two spellings one."""

    email = models.EmailField(_("address"), max_length=254)
    address_key = models.CharField(max_length=254, unique=True, editable=False)
    name = models.CharField(_("name"), max_length=200, blank=True)
    language = models.CharField(
        _("language"), max_length=16, blank=True, help_text=_("BCP 47 tag such as en or pt-BR.")
    )
    attributes = models.JSONField(
        _("attributes"),
        default=dict,
        blank=True,
        help_text=_('Merge fields of this reader, such as {"first_name": "Ada"}.'),
    )
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)

    class Meta:
        verbose_name = _("subscriber")
        verbose_name_plural = _("subscribers")
        ordering = ["-id"]

    def __str__(self) -> str:
        return self.email

    def save(self, *args: Any, **kwargs: Any) -> None:
        # Derived, not a rule: the key is always that of the address.
        self.address_key = address_key(self.email)
        super().save(*args, **kwargs)

    def clean(self) -> None:
        """Normalises the address; ValidationError with the reason when it is not one."""
        self.email = normalise_address(self.email)
        self.address_key = address_key(self.email)


class Subscription(models.Model):
    """A reader's place on a list, with its state; SubscriptionEvent has its history."""

    subscriber = models.ForeignKey(
        Subscriber, on_delete=models.CASCADE, related_name="subscriptions", db_index=False
    )
    mailing_list = models.ForeignKey(
        MailingList, on_delete=models.CASCADE, related_name="subscriptions", db_index=False
    )
    status = models.CharField(
        _("status"),
        max_length=12,
        choices=SubscriptionStatus.choices,
        default=SubscriptionStatus.SUBSCRIBED,
    )
    source = models.CharField(_("source"), max_length=200, blank=True)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    changed_at = models.DateTimeField(_("changed"), auto_now=True)

    class Meta:
        verbose_name = _("subscription")
        verbose_name_plural = _("subscriptions")
        constraints = [
            models.UniqueConstraint(
                fields=["subscriber", "mailing_list"], name="subscription_once_per_list"
            ),
        ]
        indexes = [
            # The audience is read in pages by subscriber id.
            models.Index(
                fields=["mailing_list", "subscriber"],
                condition=Q(status=SubscriptionStatus.SUBSCRIBED),
                name="subscription_audience",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.subscriber}, {self.mailing_list}"

    def move(
        self,
        status: str,
        *,
        source: str,
        note: str = "",
        by: Any = None,
        campaign_id: int | None = None,
    ) -> bool:
        """Changes the state and writes the history; False when it already was so.

        ``campaign_id``: the campaign whose letter led to it, such as through its unsubscribe link.
        """
        with transaction.atomic():
            moved = (
                Subscription.objects.filter(pk=self.pk, status=self.status)
                .exclude(status=status)
                .update(status=status, changed_at=Now())
            )
            if not moved:
                return False
            SubscriptionEvent.objects.create(
                subscription=self,
                from_status=self.status,
                to_status=status,
                source=source,
                note=note,
                by=by,
                campaign_id=campaign_id,
            )
        self.status = status
        return True

    @classmethod
    def move_all(
        cls, chosen: models.QuerySet[Subscription], status: str, *, source: str, by: Any = None
    ) -> int:
        """As ``move``, for each of ``chosen`` in memory that does not depend on how many they are;
        how many were moved.

        Goes by id, a transaction for each page: cut short it has moved whole pages, each with its
        history, and may be repeated. What joins ``chosen`` meanwhile is left.
        """
        return sum(cls._move_page(page, status, source, by) for page in _pages(chosen))

    @classmethod
    def _move_page(cls, ids: Collection[int], status: str, source: str, by: Any) -> int:
        others = cls.objects.filter(pk__in=ids).exclude(status=status)
        with transaction.atomic():
            # Who waits for one row and holds a thousand is who a deadlock needs: rows that others
            # hold, such as a reader who unsubscribes in this moment, are moved alone below.
            held = dict(others.select_for_update(skip_locked=True).values_list("pk", "status"))
            cls.objects.filter(pk__in=held).update(status=status, changed_at=Now())
            SubscriptionEvent.objects.bulk_create(
                SubscriptionEvent(
                    subscription_id=pk, from_status=before, to_status=status, source=source, by=by
                )
                for pk, before in held.items()
            )
        return len(held) + sum(
            subscription.move(status, source=source, by=by) for subscription in others.all()
        )


class SubscriptionEvent(models.Model):
    """One change of a subscription: what, when, through what, and by whom."""

    subscription = models.ForeignKey(Subscription, on_delete=models.CASCADE, related_name="events")
    from_status = models.CharField(
        _("from"), max_length=12, choices=SubscriptionStatus.choices, blank=True
    )
    to_status = models.CharField(_("to"), max_length=12, choices=SubscriptionStatus.choices)
    source = models.CharField(_("source"), max_length=200)
    note = models.CharField(_("note"), max_length=500, blank=True)
    # The campaign whose letter led to it; None for everything that no letter led to.
    campaign = models.ForeignKey(
        "Campaign",
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        db_index=False,
        related_name="subscription_events",
    )
    at = models.DateTimeField(_("when"), auto_now_add=True)
    by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        verbose_name = _("subscription event")
        ordering = ["id"]
        indexes = [
            # "How many did this campaign lose?"; most events come from imports and have none.
            models.Index(
                fields=["campaign"],
                condition=Q(campaign__isnull=False),
                name="subscription_event_campaign",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.from_status or 'new'} -> {self.to_status}"


class Suppression(models.Model):
    """An address that gets nothing, whatever list it is on. It outlives the subscriber.

    Lifting keeps the row (``lifted_at``), so that the past stays explained.
    """

    address_key = models.CharField(_("address"), max_length=254)
    reason = models.CharField(_("reason"), max_length=16, choices=SuppressionReason.choices)
    source = models.CharField(
        _("source"), max_length=200, help_text=_("What led to it: a bounce, a person, an import.")
    )
    evidence = models.TextField(_("evidence"), blank=True)
    created_at = models.DateTimeField(_("since"), auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    lifted_at = models.DateTimeField(_("lifted"), null=True, blank=True)
    lifted_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        verbose_name = _("suppression")
        verbose_name_plural = _("suppressions")
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["address_key"],
                condition=Q(lifted_at__isnull=True),
                name="suppression_one_in_force",
            ),
        ]
        indexes = [
            # Lifted ones too, and found by their beginning: PostgreSQL needs its pattern operators
            # for that in every locale but C.
            models.Index(
                fields=["address_key"],
                opclasses=["varchar_pattern_ops"],
                name="suppression_by_address",
            )
        ]
        permissions = [("lift_suppression", _("Can lift a suppression"))]

    def __str__(self) -> str:
        return f"{self.address_key} ({self.get_reason_display()})"

    @classmethod
    def add(
        cls, address: str, reason: str, *, source: str, evidence: str = "", by: Any = None
    ) -> bool:
        """Suppresses an address; False when it already was.

        Not ON CONFLICT UPDATE: a second bounce must not move the date of the first.
        """
        suppression = Suppression(
            address_key=address_key(address),
            reason=reason,
            source=source[:200],
            evidence=evidence,
            created_by=by,
        )
        before = Suppression.in_force().filter(address_key=suppression.address_key).exists()
        if before:
            return False
        Suppression.objects.bulk_create([suppression], ignore_conflicts=True)
        return True

    @classmethod
    def add_many(cls, suppressions: Iterable[Suppression]) -> set[str]:
        """As ``add``, for many unsaved rows in two queries; the keys that were not suppressed
        before. Of several rows for one address the first counts."""
        wanted: dict[str, Suppression] = {}
        for suppression in suppressions:
            wanted.setdefault(suppression.address_key, suppression)
        before = set(
            Suppression.in_force()
            .filter(address_key__in=wanted)
            .values_list("address_key", flat=True)
        )
        new = [row for key, row in wanted.items() if key not in before]
        Suppression.objects.bulk_create(new, ignore_conflicts=True)
        return {row.address_key for row in new}

    @classmethod
    def in_force(cls) -> models.QuerySet[Suppression]:
        """The suppressions that hold now."""
        return Suppression.objects.filter(lifted_at__isnull=True)

    def lift(self, *, now: datetime, by: Any = None) -> bool:
        """Ends it; False when somebody already had."""
        return bool(
            Suppression.objects.filter(pk=self.pk, lifted_at__isnull=True).update(
                lifted_at=now, lifted_by=by
            )
        )

    @classmethod
    def lift_all(
        cls, chosen: models.QuerySet[Suppression], *, now: datetime, by: Any = None
    ) -> Iterator[list[Suppression]]:
        """As ``lift``, for each of ``chosen`` in memory that does not depend on how many they are:
        what was lifted, a page and a transaction at a time."""
        for page in _pages(chosen):
            with transaction.atomic():
                lifted = list(cls.in_force().select_for_update().filter(pk__in=page).order_by("pk"))
                cls.objects.filter(pk__in=[row.pk for row in lifted]).update(
                    lifted_at=now, lifted_by=by
                )
            yield lifted


class Campaign(models.Model):
    """One newsletter to one audience. What leaves DRAFT is frozen as an Edition."""

    name = models.CharField(_("name"), max_length=200)
    status = models.CharField(
        _("status"),
        max_length=10,
        choices=CampaignStatus.choices,
        default=CampaignStatus.DRAFT,
        editable=False,
    )
    from_name = models.CharField(_("from name"), max_length=100, blank=True)
    from_email = models.EmailField(_("from address"), max_length=254)
    reply_to = models.EmailField(_("reply-to address"), max_length=254, blank=True)
    subject = models.CharField(_("subject"), max_length=250, blank=True)
    preheader = models.CharField(
        _("preheader"),
        max_length=250,
        blank=True,
        help_text=_("The line that mail programs show after the subject."),
    )
    html = models.TextField(
        _("HTML"),
        blank=True,
        help_text=_(
            'Merge fields: {{ first_name | default("reader") }}, {{ name }}, {{ email }}, '
            "{{ unsubscribe_url }}, and every attribute of a reader."
        ),
    )
    text = models.TextField(
        _("text"), blank=True, help_text=_("Empty: made from the HTML, with its links.")
    )
    include_lists = models.ManyToManyField(
        MailingList, verbose_name=_("to lists"), related_name="campaigns", blank=True
    )
    exclude_lists = models.ManyToManyField(
        MailingList, verbose_name=_("but not to lists"), related_name="excluded_by", blank=True
    )
    provider = models.CharField(_("provider"), max_length=60, default="default")
    on_doubt = models.CharField(
        _("letters in doubt"),
        max_length=6,
        choices=OnDoubt.choices,
        default=OnDoubt.HOLD,
        help_text=_(
            "When the connection broke after a letter had left, and nobody knows its fate."
        ),
    )
    priority = models.SmallIntegerField(
        _("priority"), choices=Priority.choices, default=Priority.NORMAL
    )
    scheduled_at = models.DateTimeField(_("send at"), null=True, blank=True, editable=False)
    # Set while a scheduled campaign waits for a person: its time had passed too long ago.
    held_at = models.DateTimeField(_("held since"), null=True, editable=False)
    started_at = models.DateTimeField(_("started"), null=True, editable=False)
    finished_at = models.DateTimeField(_("finished"), null=True, editable=False)
    # The frozen letter; set when the campaign leaves DRAFT.
    edition = models.ForeignKey(
        "Edition", on_delete=models.PROTECT, null=True, editable=False, related_name="+"
    )
    # Checkpoint of the queue's filling: every subscriber up to this id has been considered.
    filled_up_to = models.BigIntegerField(default=0, editable=False)
    filled_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        editable=False,
        related_name="+",
    )

    class Meta:
        verbose_name = _("campaign")
        verbose_name_plural = _("campaigns")
        ordering = ["-id"]
        permissions = [
            ("test_campaign", _("Can send test letters")),
            ("schedule_campaign", _("Can schedule a campaign")),
            ("send_campaign", _("Can send a campaign now")),
            ("pause_campaign", _("Can pause a campaign")),
            ("resume_campaign", _("Can resume a campaign")),
            ("cancel_campaign", _("Can cancel a campaign")),
        ]
        indexes = [
            models.Index(
                fields=["status"],
                condition=Q(status__in=["scheduled", "sending", "paused"]),
                name="campaign_open",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_draft(self) -> bool:
        return self.status == CampaignStatus.DRAFT

    @property
    def is_final(self) -> bool:
        return self.status in {CampaignStatus.FINISHED, CampaignStatus.CANCELLED}

    # ----------------------------------------------------------------- verbs, each recorded

    def schedule(self, at: datetime, *, edition: Edition, by: Any = None) -> bool:
        """DRAFT -> SCHEDULED for ``at`` (now or later), with its frozen edition."""
        return self._move(
            CampaignStatus.SCHEDULED,
            "scheduled",
            by=by,
            note=at.isoformat(timespec="minutes"),
            scheduled_at=at,
            edition=edition,
        )

    def unschedule(self, *, by: Any = None) -> bool:
        """SCHEDULED -> DRAFT: writing may go on, the frozen edition is given up."""
        return self._move(
            CampaignStatus.DRAFT,
            "unscheduled",
            by=by,
            scheduled_at=None,
            held_at=None,
            edition=None,
        )

    def hold(self, now: datetime) -> bool:
        """Leaves a SCHEDULED campaign to a person, who sends it after all or takes it back; the
        coordinator's word for a time that has passed long ago. False when it was held before."""
        return self._mark_scheduled(Q(held_at__isnull=True), "held", held_at=now)

    def send_late(self, now: datetime, *, by: Any = None) -> bool:
        """A person lets a held campaign go: it is due now."""
        return self._mark_scheduled(
            Q(held_at__isnull=False), "released", by=by, held_at=None, scheduled_at=now
        )

    def start(self, now: datetime) -> bool:
        """SCHEDULED -> SENDING; the coordinator's move."""
        return self._move(CampaignStatus.SENDING, "started", sources={"scheduled"}, started_at=now)

    def pause(self, *, by: Any = None, note: str = "") -> bool:
        """SENDING -> PAUSED. Letters on the wire finish; no new one leaves."""
        return self._move(CampaignStatus.PAUSED, "paused", by=by, note=note)

    def resume(self, *, by: Any = None) -> bool:
        """PAUSED -> SENDING."""
        return self._move(CampaignStatus.SENDING, "resumed", by=by, sources={"paused"})

    def cancel(self, now: datetime, *, by: Any = None) -> bool:
        """Any open state -> CANCELLED; what was not handed over never will be."""
        return self._move(CampaignStatus.CANCELLED, "cancelled", by=by, finished_at=now)

    def finish(self, now: datetime) -> bool:
        """SENDING -> FINISHED; only delivery.coordinator calls it, when the ledger balances."""
        return self._move(CampaignStatus.FINISHED, "finished", finished_at=now)

    def reopen(self, *, by: Any = None, note: str = "") -> bool:
        """FINISHED -> SENDING: a letter in doubt is sent again, in the same transaction."""
        return self._move(
            CampaignStatus.SENDING,
            "reopened",
            by=by,
            note=note,
            sources={"finished"},
            finished_at=None,
        )

    def _mark_scheduled(self, condition: Q, action: str, *, by: Any = None, **changes: Any) -> bool:
        """Changes what a SCHEDULED campaign waits for, with its record."""
        with transaction.atomic():
            marked = Campaign.objects.filter(
                condition, pk=self.pk, status=CampaignStatus.SCHEDULED
            ).update(updated_at=Now(), **changes)
            if not marked:
                return False
            CampaignEvent.objects.create(campaign=self, action=action, by=by)
            transaction.on_commit(lambda: campaign_moved.send(Campaign, campaign=self))
        self.refresh_from_db()
        return True

    def _move(
        self,
        target: CampaignStatus,
        action: str,
        *,
        by: Any = None,
        note: str = "",
        sources: set[str] | None = None,
        **changes: Any,
    ) -> bool:
        """One guarded move with its record; False when the campaign was not where it had to be."""
        with transaction.atomic():
            moved = Campaign.objects.filter(
                pk=self.pk, status__in=sources or permitted_sources(target)
            ).update(status=target, updated_at=Now(), **changes)
            if not moved:
                return False
            CampaignEvent.objects.create(campaign=self, action=action, note=note, by=by)
            transaction.on_commit(lambda: campaign_moved.send(Campaign, campaign=self))
        self.refresh_from_db()
        return True


class Edition(models.Model):
    """The frozen letter: what every reader of a campaign gets, before the merge fields are filled.

    Never changed after it is written; ``digest`` (SHA-256, hex) names its content. A test letter
    freezes an edition of its own, so a draft has as many editions as versions were tested.
    """

    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="editions")
    digest = models.CharField(max_length=64)
    from_name = models.CharField(max_length=100, blank=True)
    from_email = models.CharField(max_length=254)
    reply_to = models.CharField(max_length=254, blank=True)
    subject = models.CharField(max_length=250)
    # CSS inlined, preheader in place, merge fields as they were written.
    html = models.TextField()
    # The author's own or the one made from the HTML.
    text = models.TextField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = _("edition")
        constraints = [
            models.UniqueConstraint(fields=["campaign", "digest"], name="edition_once_per_content"),
        ]

    def __str__(self) -> str:
        return f"{self.subject} ({self.digest[:8]})"


class CampaignEvent(models.Model):
    """Who did what to a campaign, and when."""

    campaign = models.ForeignKey(Campaign, on_delete=models.CASCADE, related_name="events")
    action = models.CharField(_("action"), max_length=20)
    note = models.CharField(_("note"), max_length=500, blank=True)
    at = models.DateTimeField(_("when"), auto_now_add=True)
    by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        verbose_name = _("campaign event")
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.campaign_id} {self.action}"


class CampaignTotals(models.Model):
    """Counts of a campaign's letters by state, kept in the transaction of each move.

    Sharded by worker slot, so that workers do not queue for one row; a single shard may be
    negative, only the sum means something. Test letters are not counted.
    """

    COUNTS = (
        "eligible",
        "queued",
        "claimed",
        "sending",
        "deferred",
        "sent",
        "unconfirmed",
        "rejected",
        "expired",
        "bounced",
        "suppressed",
        "cancelled",
    )

    campaign = models.ForeignKey(
        Campaign, on_delete=models.CASCADE, related_name="totals", db_index=False
    )
    shard = models.PositiveSmallIntegerField(default=0)
    eligible = models.BigIntegerField(default=0)
    queued = models.BigIntegerField(default=0)
    claimed = models.BigIntegerField(default=0)
    sending = models.BigIntegerField(default=0)
    deferred = models.BigIntegerField(default=0)
    sent = models.BigIntegerField(default=0)
    unconfirmed = models.BigIntegerField(default=0)
    rejected = models.BigIntegerField(default=0)
    expired = models.BigIntegerField(default=0)
    bounced = models.BigIntegerField(default=0)
    suppressed = models.BigIntegerField(default=0)
    cancelled = models.BigIntegerField(default=0)

    class Meta:
        verbose_name = _("campaign totals")
        verbose_name_plural = _("campaign totals")
        constraints = [
            models.UniqueConstraint(fields=["campaign", "shard"], name="totals_once_per_shard"),
        ]

    def __str__(self) -> str:
        return f"{self.campaign_id}/{self.shard}"

    @classmethod
    def add(cls, campaign_id: int, shard: int, changes: dict[str, int]) -> None:
        """Adds to the counts of one shard, in the caller's transaction."""
        changes = {name: change for name, change in changes.items() if change}
        if not changes:
            return
        row = CampaignTotals.objects.filter(campaign_id=campaign_id, shard=shard)
        added = {name: F(name) + change for name, change in changes.items()}
        if not row.update(**added):
            CampaignTotals.objects.bulk_create(
                [CampaignTotals(campaign_id=campaign_id, shard=shard)], ignore_conflicts=True
            )
            row.update(**added)

    @classmethod
    def of(cls, campaign_ids: list[int]) -> dict[int, dict[str, int]]:
        """The counts of each campaign, summed over its shards; zeros where there are none."""
        empty = dict.fromkeys(cls.COUNTS, 0)
        sums = (
            cls.objects.filter(campaign_id__in=campaign_ids)
            .order_by()
            .values("campaign_id")
            .annotate(**{f"sum_{name}": models.Sum(name) for name in cls.COUNTS})
        )
        found = {
            row["campaign_id"]: {name: row[f"sum_{name}"] for name in cls.COUNTS} for row in sums
        }
        return {campaign_id: found.get(campaign_id, dict(empty)) for campaign_id in campaign_ids}


class ImportStatus(models.TextChoices):
    UPLOADED = "uploaded", _("Uploaded")
    QUEUED = "queued", _("Queued")
    RUNNING = "running", _("Running")
    FINISHED = "finished", _("Finished")
    FAILED = "failed", _("Failed")
    CANCELLED = "cancelled", _("Cancelled")


class ImportJob(models.Model):
    """One CSV file on its way into a list (campaigns/imports.py).

    ``checkpoint_*`` say how far the file has been imported and are written with the rows
    themselves, so that a killed import goes on where its last batch ended. Each line is counted
    once: new (on this list), updated, unchanged, kept unsubscribed, or refused. ``suppressed``
    counts those of them, beside that, that get nothing because their address is suppressed.
    """

    mailing_list = models.ForeignKey(
        MailingList, on_delete=models.CASCADE, related_name="imports", verbose_name=_("list")
    )
    file_name = models.CharField(_("file"), max_length=255)
    # Empty: forgotten, after UPLOAD_RETENTION_DAYS without a start.
    path = models.CharField(max_length=500, editable=False)
    # One of csv_source.ENCODINGS.
    encoding = models.CharField(_("encoding"), max_length=20, default="auto")
    delimiter = models.CharField(_("delimiter"), max_length=1, default=",")
    # Column -> "email", "name", "language", "attribute:<key>" or "" (not imported).
    mapping = models.JSONField(_("columns"), default=dict, blank=True)
    status = models.CharField(
        _("status"), max_length=10, choices=ImportStatus.choices, default=ImportStatus.UPLOADED
    )
    failure = models.TextField(_("failure"), blank=True)
    total_bytes = models.BigIntegerField(default=0)
    checkpoint_bytes = models.BigIntegerField(default=0)
    checkpoint_line = models.BigIntegerField(default=0)
    # When it was queued or a worker last wrote a batch: an import that is under way and silent
    # has lost its worker.
    alive_at = models.DateTimeField(null=True, editable=False)
    new = models.BigIntegerField(_("new"), default=0)
    updated = models.BigIntegerField(_("updated"), default=0)
    unchanged = models.BigIntegerField(_("unchanged"), default=0)
    kept_unsubscribed = models.BigIntegerField(_("kept unsubscribed"), default=0)
    refused = models.BigIntegerField(_("refused"), default=0)
    suppressed = models.BigIntegerField(_("suppressed"), default=0)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    started_at = models.DateTimeField(_("started"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished"), null=True, blank=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        verbose_name = _("import")
        verbose_name_plural = _("imports")
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.file_name} -> {self.mailing_list}"

    @property
    def percent(self) -> int:
        """How much of the file has been read, 0 to 100."""
        if self.status == ImportStatus.FINISHED:
            return 100
        return min(99, self.checkpoint_bytes * 100 // self.total_bytes) if self.total_bytes else 0

    @property
    def lines(self) -> int:
        """How many lines have been dealt with, blank ones and the header not counted."""
        return self.new + self.updated + self.unchanged + self.kept_unsubscribed + self.refused

    @property
    def is_under_way(self) -> bool:
        return self.status in {ImportStatus.QUEUED, ImportStatus.RUNNING}

    @property
    def is_untouched(self) -> bool:
        """Whether nothing has been imported yet, so that columns may still be chosen."""
        begun = self.is_under_way or self.checkpoint_bytes or self.finished
        return not begun and not self.is_forgotten

    @property
    def is_forgotten(self) -> bool:
        """Whether it can never go on, since its file was given up."""
        return not self.path

    @property
    def finished(self) -> bool:
        return self.status == ImportStatus.FINISHED

    def move(
        self, sources: Collection[str], target: str, only_if: Q | None = None, **fields: Any
    ) -> bool:
        """Changes the state and the fields; False when the import is in none of the sources, or not
        as ``only_if`` asks."""
        moved = ImportJob.objects.filter(only_if or Q(), pk=self.pk, status__in=sources).update(
            status=target, **fields
        )
        if moved:
            self.refresh_from_db()
        return bool(moved)


class RefusedRow(models.Model):
    """A line of the file that was not imported, and why."""

    job = models.ForeignKey(
        ImportJob, on_delete=models.CASCADE, related_name="refused_rows", db_index=False
    )
    line = models.BigIntegerField(_("line"))
    value = models.CharField(_("value"), max_length=300)
    reason = models.CharField(_("reason"), max_length=300)

    class Meta:
        verbose_name = _("refused line")
        ordering = ["line"]
        constraints = [
            models.UniqueConstraint(fields=["job", "line"], name="refused_row_once_per_line"),
        ]

    def __str__(self) -> str:
        return f"{self.line}: {self.reason}"
