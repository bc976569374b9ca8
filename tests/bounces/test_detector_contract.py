"""Our own detector keeps the contract that third parties' are held to."""

from __future__ import annotations

from collections.abc import Sequence

from bounces.detectors.base import Detector
from bounces.detectors.delivery_status import DeliveryStatusDetector
from tests.bounces.samples import raw_sample
from tests.contracts.detector import DetectorContract


class TestDeliveryStatusDetector(DetectorContract):
    def make(self) -> Detector:
        return DeliveryStatusDetector()

    def own(self) -> Sequence[bytes]:
        return [
            raw_sample("postfix-user-unknown"),
            raw_sample("exchange-quota"),
            raw_sample("sendmail-two-groups-and-one-delivered"),
            raw_sample("opensmtpd-multipart-mixed"),
        ]

    def quiet(self) -> Sequence[bytes]:
        return [raw_sample("postfix-delayed"), raw_sample("postfix-delivered")]
