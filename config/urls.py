"""Readers' pages at the root, the admin beside them. No trailing-slash redirects for readers:
a one-click unsubscribe must never be answered with a redirect (RFC 8058 section 3.1)."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("", include("bounces.urls")),
    path("", include("campaigns.urls")),
]
