"""Readers' pages. No address ends in a slash: APPEND_SLASH then has nothing to redirect to."""

from django.urls import path

from campaigns import views

urlpatterns = [
    path("", views.home, name="home"),
    # path, not str: a damaged link may have slashes, and is answered like every other.
    path("u/<path:token>", views.unsubscribe_page, name="unsubscribe"),
]
