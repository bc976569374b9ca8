"""What far sides call; no address ends in a slash."""

from django.urls import path

from bounces import views

urlpatterns = [
    path("bounces/notifications", views.notifications, name="bounce_notifications"),
]
