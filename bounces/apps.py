from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class BouncesConfig(AppConfig):
    name = "bounces"
    verbose_name = _("What came back")

    def ready(self) -> None:
        from bounces import checks, receivers  # noqa: F401  (register themselves)
