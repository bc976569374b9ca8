"""The project's settings, for a cluster that is killed all the time."""

from datetime import timedelta

from config.settings import *  # noqa: F403
from config.settings import DELIVERY as USUAL

# Some letters of a short campaign are in doubt or deferred then, and its guard rails would rightly
# stop it for a person to look. A letter that was deferred, by a worker or by the coordinator that
# settles what a killed one had noted, is due again after a second.
UNDER_KILLS = {
    "GUARD_RAILS": {"UNCONFIRMED": None, "DEFERRED": None},
    "RETRY_AFTER": [timedelta(seconds=1)],
}
DELIVERY = USUAL | UNDER_KILLS
