"""What django-q2 calls. Each may be called again, or twice at once, without harm."""

from __future__ import annotations

import time

from django.utils import timezone
from django.utils.translation import gettext as _

from campaigns import imports
from campaigns.models import ImportJob

SLICE_SECONDS = 60.0


def run_import(job_id: int) -> None:
    """Imports for up to a minute, then queues its successor while lines are left.

    Far below the queue's time-out, so that a large file neither hits it nor keeps a cluster
    from stopping.
    """
    ends = time.monotonic() + SLICE_SECONDS
    try:
        finished = imports.carry_on(job_id, is_time_up=lambda: time.monotonic() > ends)
    except Exception:
        # A fault of ours, whatever it is: the person at the progress page must not wait for ever.
        # When the database is what failed, this fails too, and resume_imports tries again.
        if job := ImportJob.objects.filter(pk=job_id).first():
            imports.fail(job, _("Something went wrong here; the log of the worker tells what."))
        raise
    if not finished:
        imports.hand_on(job_id)


def resume_imports() -> None:
    """Takes up the imports whose worker was killed. Called every minute by a schedule."""
    imports.take_up_orphans(timezone.now())


def keep_house() -> str:
    """Forgets the files of imports that nobody went on with; each hour."""
    return f"{imports.forget_abandoned_uploads(timezone.now())} uploads forgotten"
