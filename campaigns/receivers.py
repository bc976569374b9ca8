"""What campaigns does when a row of its own goes, in whatever way it goes."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.db.models.signals import post_delete
from django.dispatch import receiver

from campaigns import imports
from campaigns.models import ImportJob


@receiver(post_delete, sender=ImportJob)
def forget_its_upload(sender: Any, instance: ImportJob, **kwargs: Any) -> None:
    """An import goes with its list, too, and its file is full of addresses."""
    transaction.on_commit(lambda: imports.forget_upload(instance))
