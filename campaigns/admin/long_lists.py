"""Lists of a million addresses: what they cost must not depend on the page that is asked for."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

# A search that finds more is no search.
FOUND_AT_MOST = 1_000


class FarPages(Paginator):  # type: ignore[type-arg]
    """Pages that are found by their ids alone, from the nearer end.

    Asked for rows at once, a database fetches all those before the page, too, and joins them.
    """

    def page(self, number: Any) -> Page:  # type: ignore[type-arg]
        number = self.validate_number(number)
        start = (number - 1) * self.per_page
        stop = min(start + self.per_page, self.count)
        rows = self.object_list
        assert isinstance(rows, QuerySet)
        ids = rows.select_related(None).values_list("pk", flat=True)
        if start <= self.count - stop:
            ids = ids[start:stop]
        else:
            ids = ids.reverse()[self.count - stop : self.count - start]
        return Page(list(rows.filter(pk__in=list(ids))), number, self)


class LongList:
    """Searched from the beginning of an address, which an index answers, up to a bound; and
    counted once per page instead of twice."""

    search_help_text = _("The beginning of an address")
    show_full_result_count = False
    list_per_page = 50
    paginator = FarPages

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        changelist = super().get_changelist_instance(request)  # type: ignore[misc]
        if not changelist.query and not changelist.has_active_filters:
            changelist.full_result_count = changelist.result_count
        return changelist

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet, search_term: str
    ) -> tuple[QuerySet, bool]:
        """At most FOUND_AT_MOST rows in a list, and a word where that is not all.

        Sought in the list's order, they would be found behind all that is newer.
        """
        # Keys are lower case throughout (campaigns.addresses.address_key).
        found, may_have_duplicates = super().get_search_results(  # type: ignore[misc]
            request, queryset, search_term.lower()
        )
        if not search_term or not is_changelist(request):
            return found, may_have_duplicates
        ids = list(found.order_by().values_list("pk", flat=True)[: FOUND_AT_MOST + 1])
        if len(ids) > FOUND_AT_MOST and request.method == "GET":
            messages.info(
                request,
                _("Of more than %(n)d that begin so, %(n)d are shown: type more of the address.")
                % {"n": FOUND_AT_MOST},
            )
        return queryset.filter(pk__in=ids[:FOUND_AT_MOST]), may_have_duplicates


def is_changelist(request: HttpRequest) -> bool:
    """Whether the page is a list of rows, and not one row's own."""
    match = request.resolver_match
    return bool(match and (match.url_name or "").endswith("_changelist"))
