from django.apps import AppConfig
from django.db.models.signals import post_migrate
from django.utils.translation import gettext_lazy as _

from campaigns.schedules import Repeated, make_schedules


class DeliveryConfig(AppConfig):
    name = "delivery"
    verbose_name = _("Delivery")
    schedules = (
        Repeated("Coordinate campaigns", "delivery.tasks.coordinate", 1),
        Repeated("Look up receiving domains", "delivery.tasks.look_up_domains", 10),
    )

    def ready(self) -> None:
        from django_q import cluster

        from delivery import checks, receivers, task_queue  # noqa: F401  (they register themselves)

        post_migrate.connect(make_schedules, sender=self)
        # No setting chooses it; and with any other a killed worker may stop its whole cluster.
        cluster.Queue = task_queue.LastingQueue
