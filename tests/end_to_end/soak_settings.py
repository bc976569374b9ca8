"""The project's settings, for a cluster that is killed all the time: some letters of a short
campaign are then in doubt or deferred, and its guard rails would rightly stop it for a person to
look. A letter that was deferred is due again after a second."""

from datetime import timedelta

from config.settings import *  # noqa: F403
from config.settings import DELIVERY

DELIVERY["GUARD_RAILS"] = {"UNCONFIRMED": None, "DEFERRED": None}
DELIVERY["RETRY_AFTER"] = [timedelta(seconds=1)]
