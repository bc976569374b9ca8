"""How fast the pages answer with a big table behind them, and how much memory the main job takes.

    python -m benchmarks.pages [--deliveries 1000000] [--readers 100000] [--rounds 20] [--quiet]

Starts a throw-away PostgreSQL (or uses DATABASE_URL), imports ``--readers`` readers through the
real command, sends them a campaign through the maildir provider with a real django-q2 cluster,
watching the resident memory of every process, fills the table up to ``--deliveries`` rows, and
then asks gunicorn for each page, while other campaigns are sent to the same readers (``--quiet``:
while nothing is), as many as it takes until the last page was asked for. Prints a table of medians;
the last line is JSON. Exit status 1 when a median is over 300 ms or a process took over 200 MB.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from tests.postgresql import throwaway_server

HERE = Path(__file__).resolve().parent.parent
SLOWEST_MEDIAN_MS = 300
LARGEST_MB = 200


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def child(*command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours, ended with all of its children."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


class Memory:
    """The largest resident size, in MB, of each process of a tree, by what it runs."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}

    def look(self, name: str, pid: int) -> None:
        try:
            tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in tree:
            try:
                size = process.memory_info().rss / 1e6
            except psutil.NoSuchProcess:
                continue
            self.largest[name] = max(self.largest.get(name, 0), size)


def wait(done: Callable[[], bool], look: Callable[[], None], limit: float) -> float:
    start = time.monotonic()
    while not done():
        if time.monotonic() - start > limit:
            sys.exit(f"gave up after {limit:.0f} s")
        look()
        time.sleep(0.25)
    return time.monotonic() - start


def fill(wanted: int) -> None:
    """Copies the campaign until the table holds ``wanted`` deliveries: most of them sent."""
    from django.db import connection

    from campaigns.models import Campaign, CampaignTotals
    from delivery.models import Delivery

    source = Campaign.objects.earliest("id")
    size = Delivery.objects.filter(campaign=source).count()
    while Delivery.objects.count() < wanted:
        copy = Campaign.objects.get(pk=source.pk)
        copy.pk = None
        copy.save()
        copy.include_lists.set(source.include_lists.all())
        with connection.cursor() as cursor:
            cursor.execute(
                """INSERT INTO delivery_delivery
                       (campaign_id, edition_id, subscriber_id, mailing_list_id, rcpt_to,
                        address_key, status, is_test, due_at, attempts, provider, handed_over_at,
                        settled_at, code, reply, queued_at, waits_alone, unusual)
                   SELECT %s, edition_id, subscriber_id, mailing_list_id, rcpt_to, address_key,
                          state, is_test, due_at, attempts, provider, handed_over_at, settled_at,
                          code, reply, queued_at, false, NULLIF(state, 'sent')
                     FROM (SELECT *, CASE WHEN id %% 100 = 0 THEN 'rejected'
                                          WHEN id %% 100 = 1 THEN 'bounced'
                                          WHEN id %% 5000 = 2 THEN 'unconfirmed'
                                          ELSE 'sent' END AS state
                             FROM delivery_delivery WHERE campaign_id = %s) AS source""",
                [copy.pk, source.pk],
            )
            cursor.execute(
                "SELECT status, count(*) FROM delivery_delivery WHERE campaign_id = %s GROUP BY 1",
                [copy.pk],
            )
            CampaignTotals.add(copy.pk, 0, dict(cursor.fetchall()) | {"eligible": size})
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


class Browser:
    """A logged-in person, one kept connection."""

    def __init__(self, port: int, username: str, password: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.cookies: dict[str, str] = {}
        page = self.get("/admin/login/")
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
        assert token
        form = {"username": username, "password": password, "csrfmiddlewaretoken": token[1]}
        self.request("POST", "/admin/login/", urllib.parse.urlencode(form))

    def request(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        headers = {"Cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items())}
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        self.connection.request(method, path, body, headers)
        response = self.connection.getresponse()
        text = response.read().decode()
        for name, value in response.getheaders():
            if name.lower() == "set-cookie":
                key, _, rest = value.partition("=")
                self.cookies[key] = rest.partition(";")[0]
        return response.status, text

    def get(self, path: str) -> str:
        status, text = self.request("GET", path)
        if status != 200:
            sys.exit(f"{path} answered {status}")
        return text


def measure(browser: Browser, rounds: int, keep_busy: Callable[[], None]) -> dict[str, float]:
    """Milliseconds for each page, medians of so many rounds; ``keep_busy`` is called before each
    page's."""
    from campaigns.models import Campaign, CampaignTotals, Subscriber
    from campaigns.unsubscribe import unsubscribe_url
    from delivery.models import Delivery
    from delivery.states import DeliveryStatus

    campaign = Campaign.objects.earliest("id")
    last = Campaign.objects.latest("id")
    row = Delivery.objects.filter(campaign=campaign, status="sent").earliest("id")
    of_one = CampaignTotals.of([campaign.pk])[campaign.pk]["eligible"] // 50
    of_all = Delivery.objects.count() // 50
    reader = Subscriber.objects.earliest("id")
    deliveries = "/admin/delivery/delivery/"
    pages = {
        "dashboard": "/admin/",
        "campaigns": "/admin/campaigns/campaign/",
        "campaign, watched": f"/admin/campaigns/campaign/{last.pk}/change/",
        "lists": "/admin/campaigns/mailinglist/",
        "subscribers": "/admin/campaigns/subscriber/",
        "subscribers, searched": f"/admin/campaigns/subscriber/?q={reader.email}",
        "subscriptions": "/admin/campaigns/subscription/",
        "suppressions": "/admin/campaigns/suppression/",
        "imports": "/admin/campaigns/importjob/",
        "deliveries": deliveries,
        "deliveries, middle page": f"{deliveries}?p={of_all // 2}",
        "deliveries, last page": f"{deliveries}?p={of_all}",
        "deliveries, searched": f"{deliveries}?q={row.rcpt_to}",
        "deliveries, searched by a beginning": f"{deliveries}?q={row.rcpt_to[:8]}",
        "deliveries, nothing found": f"{deliveries}?q=nobody",
        "of a campaign, middle page": f"{deliveries}?campaign__id__exact={campaign.pk}"
        f"&p={of_one // 2}",
        "of a campaign, last page": f"{deliveries}?campaign__id__exact={campaign.pk}&p={of_one}",
        "deliveries of a campaign": f"{deliveries}?campaign__id__exact={campaign.pk}",
        **{
            f"deliveries, {state}": f"{deliveries}?campaign__id__exact={campaign.pk}"
            f"&status__exact={state}"
            for state in DeliveryStatus.values
        },
        **{
            f"all deliveries, {state}": f"{deliveries}?status__exact={state}"
            for state in DeliveryStatus.values
        },
        "one delivery": f"{deliveries}{row.pk}/change/",
        "why": f"{deliveries}why/?address={row.rcpt_to}",
        "bounces": "/admin/bounces/bounce/",
        "providers": "/admin/delivery/providerstate/",
        "unsubscribe page": urllib.parse.urlsplit(unsubscribe_url(campaign.pk, reader.pk)).path,
    }
    medians = {}
    for name, path in pages.items():
        times = []
        keep_busy()
        for _ in range(rounds):
            start = time.perf_counter()
            browser.get(path)
            times.append((time.perf_counter() - start) * 1000)
        medians[name] = statistics.median(times)
    return medians


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deliveries", type=int, default=1_000_000)
    parser.add_argument("--readers", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quiet", action="store_true", help="ask while nothing is sent")
    options = parser.parse_args()

    var = Path(tempfile.mkdtemp(prefix="pennypost-pages-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, var, ignore_errors=True)
        if not os.environ.get("DATABASE_URL", "").startswith("postgres"):
            os.environ["DATABASE_URL"] = stack.enter_context(throwaway_server())
        os.environ |= {"PENNYPOST_VAR": str(var), "LOG_LEVEL": "WARNING"}
        os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
        os.environ.setdefault("SECRET_KEY", "a-key-of-the-benchmark-and-of-nothing-else-at-all")
        return run(stack, var, options)


def run(stack: ExitStack, var: Path, options: argparse.Namespace) -> int:
    """Exit status 1 when something took longer, or more memory, than it may."""
    import django

    django.setup()
    from django.contrib.auth import get_user_model
    from django.core.management import call_command
    from django.utils import timezone

    from campaigns.editions import freeze
    from campaigns.models import Campaign, CampaignTotals, MailingList

    call_command("migrate", verbosity=0)
    get_user_model().objects.create_superuser("admin", password="measured")
    memory = Memory()
    python = sys.executable

    csv = var / "readers.csv"
    with csv.open("w") as file:
        file.write("email,name,first_name,city\n")
        file.writelines(
            f"reader{n}@example{n % 50}.org,Reader {n},First{n},Town {n % 900}\n"
            for n in range(options.readers)
        )
    command = [python, "manage.py", "import_subscribers", str(csv), "--list", "Weekly"]
    if not MailingList.objects.exists():
        command.append("--create-list")
    start = time.monotonic()
    with child(*command, log=var / "import.log") as process:
        wait(
            lambda: process.poll() is not None,
            lambda: memory.look("import", process.pid),
            limit=1800,
        )
    import_seconds = time.monotonic() - start
    weekly = MailingList.objects.get()
    if process.returncode or weekly.subscriptions.count() != options.readers:
        sys.exit((var / "import.log").read_text()[-2000:])

    port = free_port()
    cluster = stack.enter_context(child(python, "manage.py", "qcluster", log=var / "cluster.log"))
    web = stack.enter_context(
        child(
            python,
            "-m",
            "gunicorn",
            "config.wsgi",
            "--bind",
            f"127.0.0.1:{port}",
            "--workers",
            "2",
            "--threads",
            "4",
            "--worker-class",
            "gthread",
            log=var / "web.log",
        )
    )

    def new_campaign(name: str) -> Campaign:
        campaign = Campaign.objects.create(
            name=name,
            from_email="news@news.example.org",
            subject="Good day",
            provider="rehearsal",
            html="<p>Good day {{ first_name | default('reader') }}</p>"
            + "<p>News.</p>" * 500
            + '<p><a href="{{ unsubscribe_url }}">Unsubscribe</a></p>',
        )
        campaign.include_lists.add(weekly)
        assert campaign.schedule(timezone.now(), edition=freeze(campaign))
        return campaign

    campaign = new_campaign("Measured")

    def look() -> None:
        memory.look("cluster", cluster.pid)
        memory.look("web", web.pid)

    def finished() -> bool:
        campaign.refresh_from_db()
        return campaign.status == "finished"

    send_seconds = wait(finished, look, limit=3600)
    totals = CampaignTotals.of([campaign.pk])[campaign.pk]
    letters = len(list((var / "rehearsal" / "new").iterdir()))
    if totals["sent"] != options.readers or letters != options.readers:
        sys.exit(f"sent {totals['sent']} and written {letters} of {options.readers}")

    fill(options.deliveries)
    browser = Browser(port, "admin", "measured")
    meanwhile: list[int] = []
    enough = options.readers // 2  # for one page's rounds

    def sent_meanwhile() -> int:
        return sum(totals["sent"] for totals in CampaignTotals.of(meanwhile).values())

    def keep_busy() -> None:
        """Another campaign where what is left of the others may not last."""
        if not options.quiet and len(meanwhile) * options.readers - sent_meanwhile() < enough:
            meanwhile.append(new_campaign(f"Sent meanwhile, {len(meanwhile) + 1}").pk)

    keep_busy()
    if meanwhile:
        wait(lambda: sent_meanwhile() > 0, look, limit=120)
    loads, began, before = [os.getloadavg()[0]], time.monotonic(), sent_meanwhile()
    medians = measure(browser, options.rounds, keep_busy)
    rate = (sent_meanwhile() - before) / (time.monotonic() - began)
    loads.append(os.getloadavg()[0])
    if meanwhile and sent_meanwhile() == len(meanwhile) * options.readers:
        sys.exit("the campaigns ended before the last page was asked for")
    look()

    print(f"\nimport: {options.readers / import_seconds:,.0f} readers/s")
    print(f"send through maildir: {options.readers / send_seconds:,.0f} letters/s")
    print(f"load when the pages were asked for: {loads[0]:.0f} to {loads[1]:.0f}")
    print(f"sent meanwhile: {rate:,.0f} letters/s, {len(meanwhile)} campaigns")
    print("\nlargest process   MB")
    for name, size in memory.largest.items():
        print(f"{name:15} {size:6.0f}")
    print(f"\nmedian of {options.rounds}, {options.deliveries:,} deliveries      ms")
    for name, milliseconds in sorted(medians.items(), key=lambda item: -item[1]):
        print(f"{name:40} {milliseconds:6.0f}")
    print(json.dumps({"memory_mb": memory.largest, "median_ms": medians, "load": loads}))
    slow = max(medians.values()) > SLOWEST_MEDIAN_MS
    return int(slow or max(memory.largest.values()) > LARGEST_MB)


if __name__ == "__main__":
    sys.exit(main())
