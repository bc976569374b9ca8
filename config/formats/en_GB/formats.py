"""Dates of the admin's own tables as our pages write them: 21 Nov 2026, 14:05, not 2:05 p.m."""

DATETIME_FORMAT = "j M Y, H:i"
SHORT_DATETIME_FORMAT = "j M Y, H:i"
TIME_FORMAT = "H:i"
