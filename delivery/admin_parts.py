"""What delivery's pages in the admin have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
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


# Levels of django.contrib.messages, each with its words.
Said = list[tuple[int, Any]]


@dataclass(frozen=True, slots=True)
class Button:
    """What a person who has ``permission`` can do on a row's page: a POST to ``name`` below it.

    ``act`` does it, writes it into the row's history, and returns what is said of it; None where
    there is nothing to do it to.
    """

    name: str
    permission: str
    act: Callable[[HttpRequest, Any], Said | None]


class OwnPageAdmin(ReadOnlyAdmin):
    """Rows whose page is a page of ours, to be read, with buttons for what can be done."""

    page_template: str

    def buttons(self) -> Sequence[Button]:
        return ()

    def may_press(self, request: HttpRequest, button: Button, row: Any) -> bool:
        """Whether this person may; ``row`` is None where there is none."""
        return request.user.has_perm(button.permission)

    def page_title(self, row: Any) -> str:
        return str(row)

    def page_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """What the page says of a row, beside ``original`` and ``title``."""
        raise NotImplementedError

    def get_urls(self) -> list[URLPattern]:
        own = [
            path(
                f"<int:pk>/{button.name}/",
                self.admin_site.admin_view(self._view_of_button(button)),
                name=f"{self._names}_{button.name.replace('-', '_')}",
            )
            for button in self.buttons()
        ]
        return own + super().get_urls()

    @property
    def _names(self) -> str:
        """How the names of this model's addresses begin."""
        return f"{self.opts.app_label}_{self.opts.model_name}"

    def _view_of_button(self, button: Button) -> Callable[..., HttpResponse]:
        def view(request: HttpRequest, pk: int) -> HttpResponse:
            if request.method != "POST":
                return HttpResponseNotAllowed(["POST"])
            row = self.model._default_manager.filter(pk=pk).first()
            if not self.may_press(request, button, row):
                raise PermissionDenied
            said = button.act(request, row) if row else None
            if said is None:
                return self._get_obj_does_not_exist_redirect(request, self.opts, str(pk))
            for level, words in said:
                self.message_user(request, words, level)
            return HttpResponseRedirect(reverse(f"admin:{self._names}_change", args=[pk]))

        return view

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
