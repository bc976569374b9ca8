"""What delivery's pages in the admin have in common."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.template.response import TemplateResponse
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


class OwnPageAdmin(ReadOnlyAdmin):
    """Rows whose page is a page of ours, to be read; what can be done there is a POST elsewhere."""

    page_template: str

    def page_title(self, row: Any) -> str:
        return str(row)

    def page_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """What the page says of a row, beside ``original`` and ``title``."""
        raise NotImplementedError

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        if request.method not in {"GET", "HEAD"}:
            return HttpResponseNotAllowed(["GET", "HEAD"])
        row = self.get_object(request, unquote(object_id))
        if not self.has_view_permission(request, row):
            raise PermissionDenied
        if row is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": self.page_title(row),
            "original": row,
            **self.page_context(request, row),
            **(extra_context or {}),
        }
        return TemplateResponse(request, self.page_template, context)


def on_one_line(text: str) -> str:
    """A cell that is not broken into lines when its neighbour is long."""
    return format_html('<span class="pp-number">{}</span>', text)


def moment(at: datetime | None) -> str | None:
    return on_one_line(date_format(timezone.localtime(at), "j M Y, H:i")) if at else None
