"""The clone guard: a database from elsewhere, or from yesterday, sends nothing here by itself.

A backup knows nothing of the letters that left after it was made; whoever restores it and starts
the cluster would send them again, and on a copy for tests would send them for the first time to
real readers. So each host keeps, outside the database, which installations it belongs to and how
far each had come: a file for each, named after its identity, with the highest ``beat`` seen. The
beat grows with each check-in. Sending is off

- on a host that has no file for the database's identity: a copy, or a host that is new to it;
- where the database counts less than the host remembers: it was restored.

A database that has no identity yet takes one from the first host that checks in, so that a fresh
installation, the demo and the tests need nothing. Hosts that share a database are adopted one by
one, or share DELIVERY["INSTALLATION"], which stands for the file where no disk lasts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

from django.db import transaction
from django.utils.translation import gettext as _

from delivery import alerts
from delivery.conf import DeliverySettings
from delivery.models import Alert, Installation

logger = logging.getLogger(__name__)

# A person's word in the admin must be acted upon soon: it must not wake up in a later backup.
WORD_HOLDS = timedelta(minutes=30)


class Standing(StrEnum):
    """How this host stands to the database; only OURS may send."""

    OURS = "ours"
    UNKNOWN_HERE = "unknown here"
    RESTORED = "restored"


@dataclass(frozen=True, slots=True)
class Memory:
    """What this host remembers of an installation. ``beat``: None when it knows it by the
    setting alone."""

    belongs: bool
    beat: int | None = None


def judge(beat: int, memory: Memory) -> Standing:
    """Pure: the database's beat against what the host remembers."""
    if not memory.belongs:
        return Standing.UNKNOWN_HERE
    if memory.beat is not None and beat < memory.beat:
        return Standing.RESTORED
    return Standing.OURS


def check_in(settings: DeliverySettings, now: datetime) -> Standing:
    """Whether this host may send; counts one beat on when it may.

    To be asked before anything is sent, reclaimed or fetched. Everything but OURS raises an alert.
    """
    if settings.installations is None and not settings.installation:
        return Standing.OURS
    with transaction.atomic():
        row = _row(settings)
        if row.adopt_host == host() and row.adopt_until and now < row.adopt_until:
            _adopt(row, settings)
        memory = _remember(row.identity, settings)
        standing = judge(row.beat, memory)
        if standing is Standing.OURS:
            row.beat += 1
            row.save(update_fields=["beat"])
        else:
            _tell(standing, row, memory, now)
    if standing is Standing.OURS:
        # After the commit: the host may remember less than the database counts, never more.
        _write(row.identity, row.beat, settings)
        alerts.resolve(_cause(), now)
    return standing


def adopt(settings: DeliverySettings, now: datetime) -> str:
    """A person says that this host may send from this database; its identity."""
    with transaction.atomic():
        row = _row(settings)
        _adopt(row, settings)
    alerts.resolve(_cause(), now)
    return row.identity


def promise_adoption(host_name: str, now: datetime) -> bool:
    """The same by a button, for a host that is perhaps not the one which serves the page: it
    adopts at its next check-in, within WORD_HOLDS. False when there is nothing to adopt."""
    return bool(
        Installation.objects.update(adopt_host=host_name[:255], adopt_until=now + WORD_HOLDS)
    )


def last_check_in(settings: DeliverySettings) -> datetime | None:
    """When this host was last told that it may send, by its own clock; None: never. Each task of
    sending or coordinating asks, so a host that works was told minutes ago. Reads files only."""
    folder = settings.installations
    if folder is None or not folder.is_dir():
        return None
    last = max((file.stat().st_mtime for file in folder.iterdir()), default=None)
    return None if last is None else datetime.fromtimestamp(last, UTC)


def host() -> str:
    """This machine's name, as people know it."""
    return socket.gethostname()[:255]


def host_of(alert: Alert) -> str:
    """The host whose sending is off."""
    return alert.cause.removeprefix(_CAUSE)


_CAUSE = "sending is off: "


def _cause() -> str:
    return f"{_CAUSE}{host()}"


def _row(settings: DeliverySettings) -> Installation:
    """The database's identity, locked; a fresh database gets one, and this host remembers it."""
    row = Installation.objects.select_for_update().order_by("pk").first()
    if row is not None:
        return row
    identity = settings.installation or secrets.token_hex(16)
    # The file comes first: if it cannot be written, the database stays without an identity.
    _write(identity, 0, settings)
    # Two hosts may be first at once: one primary key lets one of them in, the other is unknown.
    Installation.objects.bulk_create([Installation(pk=1, identity=identity)], ignore_conflicts=True)
    return Installation.objects.select_for_update().get(pk=1)


def _adopt(row: Installation, settings: DeliverySettings) -> None:
    """The database counts on from what the host remembers, so that it is not taken for restored
    again, nor is any copy of it taken for the newer one."""
    if settings.installation and settings.installation != row.identity:
        _forget(row.identity, settings)
        row.identity = settings.installation
    memory = _remember(row.identity, settings)
    row.beat = max(row.beat, memory.beat or 0) + 1
    row.adopt_host, row.adopt_until = "", None
    row.save()
    _write(row.identity, row.beat - 1, settings)
    logger.warning("delivery.installation_adopted", extra={"host": host()})


def _tell(standing: Standing, row: Installation, memory: Memory, now: datetime) -> None:
    reason = (
        _(
            "This database counts %(beat)d check-ins, and this machine remembers %(seen)d: it was "
            "restored from a backup. Letters that left since are unknown to it and would leave "
            "a second time."
        )
        % {"beat": row.beat, "seen": memory.beat or 0}
        if standing is Standing.RESTORED
        else _(
            "This machine does not know the database: it is a copy, or the machine is new to it. "
            "A copy would write to the same readers as the original."
        )
    )
    what = _(
        "Nothing is sent and nothing is fetched here until a person turns it on: with the button "
        "in the admin, or with “manage.py adopt_installation” on the machine."
    )
    alerts.raise_alert(
        Alert.Kind.INSTALLATION,
        _cause(),
        _("Sending is off on %(host)s") % {"host": host()},
        f"{reason}\n\n{what}",
        now,
    )
    logger.error("delivery.sending_is_off", extra={"host": host(), "standing": standing})


# ---------------------------------------------------------------------------------- the files


def _file(identity: str, settings: DeliverySettings) -> Path | None:
    if settings.installations is None:
        return None
    # An identity from a foreign database may be anything: it must not lead out of the folder.
    return settings.installations / sha256(identity.encode()).hexdigest()[:32]


def _remember(identity: str, settings: DeliverySettings) -> Memory:
    by_setting = bool(settings.installation) and settings.installation == identity
    file = _file(identity, settings)
    try:
        beat = int(file.read_text()) if file is not None else None
    except FileNotFoundError:
        beat = None
    except ValueError:
        # Torn by a full disk, say: membership is all that it still tells.
        beat = 0
    return Memory(by_setting or beat is not None, beat)


def _write(identity: str, beat: int, settings: DeliverySettings) -> None:
    """Durable before it counts: a host that forgot would be a stranger after a power cut."""
    file = _file(identity, settings)
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError, ValueError):
        if int(file.read_text()) >= beat:
            return
    new = file.with_name(f"{file.name}.{os.getpid()}")
    with new.open("w") as stream:
        stream.write(str(beat))
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(file)


def _forget(identity: str, settings: DeliverySettings) -> None:
    file = _file(identity, settings)
    if file is not None:
        file.unlink(missing_ok=True)
