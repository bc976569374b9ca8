from bounces.detectors.base import IncomingMail
from bounces.report import BounceReport


class BigHostDetector:
    """BigHost writes "X-BigHost-Failure: address; status" and no status part (RFC 3464)."""

    def detect(self, mail: IncomingMail) -> list[BounceReport] | None:
        value = mail.header("X-BigHost-Failure")
        if not value:
            return None  # not mine: the next detector is asked
        address, _, status = (word.strip() for word in value.partition(";"))
        if status.startswith("4."):
            return []  # mine, and nobody bounced: only a delay
        return [
            BounceReport(
                recipient=address,
                action="failed",
                status=status,
                hard=status == "5.1.1",
                diagnostic=mail.header("Subject"),
            )
        ]
