from importlib.util import find_spec

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class DeliveryConfig(AppConfig):
    name = "delivery"
    verbose_name = _("Delivery")

    def ready(self) -> None:
        from delivery import checks  # noqa: F401  (registers itself)

        if find_spec("campaigns.letter") and find_spec("campaigns.audience"):
            from delivery import receivers  # noqa: F401
