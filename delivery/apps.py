from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class DeliveryConfig(AppConfig):
    name = "delivery"
    verbose_name = _("Delivery")

    def ready(self) -> None:
        from django_q import cluster

        from delivery import checks, receivers, task_queue  # noqa: F401  (they register themselves)

        # No setting chooses it; and with any other a killed worker may stop its whole cluster.
        cluster.Queue = task_queue.LastingQueue
