from django.apps import AppConfig
from django.db.models.signals import post_migrate
from django.utils.translation import gettext_lazy as _

from campaigns.schedules import Repeated, make_schedules


class CampaignsConfig(AppConfig):
    name = "campaigns"
    verbose_name = _("Campaigns")
    schedules = (
        Repeated("Take up imports whose worker was lost", "campaigns.tasks.resume_imports", 1),
        Repeated("Forget abandoned uploads", "campaigns.tasks.keep_house", 60),
    )

    def ready(self) -> None:
        from campaigns import checks, receivers  # noqa: F401  (they register themselves)

        post_migrate.connect(make_schedules, sender=self)
