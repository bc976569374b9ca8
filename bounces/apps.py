from django.apps import AppConfig
from django.db.models.signals import post_migrate
from django.utils.translation import gettext_lazy as _

from campaigns.schedules import Repeated, make_schedules


class BouncesConfig(AppConfig):
    name = "bounces"
    verbose_name = _("What came back")
    schedules = (
        Repeated("Poll the bounce mailboxes", "bounces.tasks.poll_mailboxes", 1),
        Repeated("Keep watching the bounce mailboxes", "bounces.tasks.keep_watching", 5),
        Repeated("Forget old bounce mails", "bounces.tasks.keep_house", 60),
    )

    def ready(self) -> None:
        from bounces import checks, receivers  # noqa: F401  (register themselves)

        post_migrate.connect(make_schedules, sender=self)
