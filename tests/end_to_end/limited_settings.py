"""The settings of a host in test_limits_real_time: limits, and a clock that is wrong.

HOST_CLOCK_AHEAD moves what Django and django-q2 call now by so many seconds. LIMITS is the list of
the provider's limits as JSON.
"""

import json
import os
from datetime import timedelta

from django.utils import timezone

from config.settings import *  # noqa: F403
from config.settings import DELIVERY, Q_CLUSTER

_ahead = timedelta(seconds=float(os.environ["HOST_CLOCK_AHEAD"]))
_true_now = timezone.now
timezone.now = lambda: _true_now() + _ahead

DELIVERY["SLICE_LENGTH"] = timedelta(seconds=5)
DELIVERY["LEASE"] = timedelta(seconds=15)
DELIVERY["PROVIDERS"]["default"]["LIMITS"] = json.loads(os.environ["LIMITS"])
Q_CLUSTER["poll"] = 0.1
