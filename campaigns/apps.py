from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate
from django.utils.translation import gettext_lazy as _


class CampaignsConfig(AppConfig):
    name = "campaigns"
    verbose_name = _("Campaigns")

    def ready(self) -> None:
        from campaigns import checks  # noqa: F401  (registers the system checks)

        post_migrate.connect(make_schedules, sender=self)


def make_schedules(sender: AppConfig, **kwargs: Any) -> None:
    """The place in django-q2's schedule of what must happen by itself; made once."""
    from django_q.models import Schedule

    Schedule.objects.get_or_create(
        name="Take up imports whose worker was lost",
        defaults={
            "func": "campaigns.tasks.resume_imports",
            "schedule_type": Schedule.MINUTES,
            "minutes": 1,
            "repeats": -1,
        },
    )
