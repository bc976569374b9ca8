"""What delivery's pages in the admin have in common."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.http import HttpRequest
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from unfold.admin import ModelAdmin


class ReadOnlyAdmin(ModelAdmin):
    """Rows that only the machine writes."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def on_one_line(text: str) -> str:
    """A cell that is not broken into lines when its neighbour is long."""
    return format_html('<span class="pp-number">{}</span>', text)


def moment(at: datetime | None) -> str | None:
    return on_one_line(date_format(timezone.localtime(at), "j M Y, H:i")) if at else None
