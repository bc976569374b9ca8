"""A person at work in a real browser, with a real site behind it: from a CSV file to a bounce.

Nothing is faked and nothing is slept through: every step waits for what the person waits for.
"""

from __future__ import annotations

import re
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path

import pytest
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import User
from playwright.sync_api import Browser, Locator, Page, expect

from campaigns import imports
from campaigns.models import Campaign, ImportJob, MailingList, Suppression
from config.demo.report import non_delivery_report
from delivery.models import Delivery
from tests.browser import PATIENCE_MS, Canary, Traps
from tests.delivery.conftest import make_readers
from tests.end_to_end.site import NAME, PASSWORD, Site, running_site, unsubscribe_link
from tests.smtp_server import At, Rule, SMTPServer

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

READERS = 30
HTML = (
    '<html><body><h1>Harbour news</h1><p>Dear {{ first_name | default("reader") }} from '
    '{{ city | default("somewhere") }},</p><p>the ferry runs again.</p>'
    '<p><a href="{{ unsubscribe_url }}">Unsubscribe</a></p></body></html>'
)


@pytest.fixture
def smtp() -> Iterator[SMTPServer]:
    with SMTPServer() as server:
        yield server


@contextmanager
def at_the_desk(chromium: Browser, site: Site) -> Iterator[Page]:
    """A person who has logged in by the form."""
    context = chromium.new_context(base_url=site.url, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(f"{page.url}: {error}"))
    page.goto("/admin/")
    page.get_by_label("Username").fill(NAME)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(re.compile(r"/admin/$"))
    yield page
    context.close()
    assert faults == [], "an exception in the page's own scripts"


@pytest.fixture
def editor(transactional_db: None) -> User:
    # Hashed as the site does it; tests have a faster way of their own.
    hashed = make_password(PASSWORD, hasher="pbkdf2_sha256")
    return User.objects.create(
        username=NAME, password=hashed, is_active=True, is_staff=True, is_superuser=True
    )


def send_now(page: Page, to: MailingList, **fields: str) -> Campaign:
    """A campaign on its way: for tests of what comes after writing it."""
    values = {"name": "Harbour letter", "subject": "The ferry runs again", "html": HTML}
    campaign = Campaign.objects.create(from_email="news@example.org", **values | fields)
    campaign.include_lists.add(to)
    page.goto(f"/admin/campaigns/campaign/{campaign.pk}/send/")
    warnings = page.get_by_label("I have seen")
    if warnings.count():
        warnings.check()
    page.get_by_role("button", name="Send now").click()
    expect(page.get_by_text("It is on its way.")).to_be_visible()
    return campaign


def watch_until(page: Page, campaign: Campaign, word: str) -> None:
    """Opens the campaign's page and stays on it until its badge says ``word``."""
    page.goto(f"/admin/campaigns/campaign/{campaign.pk}/change/")
    page.evaluate("window.isTheSamePage = true")
    expect(page.locator(".pp-head .pp-badge")).to_have_text(word)
    assert page.evaluate("window.isTheSamePage"), "the page was loaded again"


# ------------------------------------------------------------------------------- the whole way


def test_a_person_imports_writes_previews_tests_sends_and_watches_it_finish(
    chromium: Browser, editor: User, smtp: SMTPServer, tmp_path: Path
):
    file = tmp_path / "readers.csv"
    lines = [f"reader{n}@example.org;Reader {n};Ada{n};Turku" for n in range(READERS)]
    file.write_text("E-mail;Name;First name;Town\n" + "\n".join([*lines, "nobody at home;;;"]))
    with running_site(tmp_path, smtp) as site, at_the_desk(chromium, site) as page:
        create_a_list(page)
        import_a_file(page, file)
        write_a_campaign(page)
        preview_it(page)
        send_a_test(page, site)
        send_it(page)
        watch_it_finish(page)

    taken = Counter(letter.rcpt_to[0] for letter in smtp.accepted)
    readers = {f"reader{n}@example.org": 1 for n in range(READERS)}
    assert taken == readers | {"proof@example.org": 1}
    body = plain(site.letters_to("reader7@example.org")[0])
    assert "Dear Ada7 from Turku" in body


def in_the_sidebar(page: Page, name: str) -> Locator:
    """A link of the navigation; in front of its name it has an icon, which is a word as well."""
    return page.locator("#nav-sidebar").get_by_role("link", name=re.compile(rf"\b{name}$"))


def create_a_list(page: Page) -> None:
    in_the_sidebar(page, "Lists").click()
    page.get_by_role("link", name="Add list").first.click()
    page.get_by_label("Name").press_sequentially("Harbour letter")
    expect(page.get_by_label("Label")).to_have_value("harbour-letter")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("link", name="Harbour letter").first).to_be_visible()


def import_a_file(page: Page, file: Path) -> None:
    page.goto("/admin/campaigns/importjob/add/")
    page.get_by_label("Into the list").select_option(label="Harbour letter")
    page.locator("#id_file").set_input_files(file)
    expect(page.locator("[data-drop] [data-part=name]")).to_have_text("readers.csv")
    page.get_by_role("button", name="Upload and choose columns").click()

    # "Town" was taken over under its own name; the letter calls it city.
    preview = page.locator("[data-swap=preview]")
    expect(preview).to_contain_text("town")
    expect(preview).to_contain_text("reader0@example.org")
    page.get_by_label("Name of the attribute for Town").fill("city")
    page.get_by_label("Name of the attribute for Town").blur()
    expect(preview.locator("thead")).to_contain_text("city")
    page.get_by_role("button", name="Start the import").click()

    expect(page.locator(".pp-note-good")).to_contain_text(f"{READERS + 1} lines were read")
    expect(page.locator("[data-count=new]")).to_have_text(str(READERS))
    refused = page.locator("#refused tbody tr")
    expect(refused).to_have_count(1)
    expect(refused).to_contain_text("nobody at home")
    expect(refused.locator(".pp-line")).to_have_text(str(READERS + 2))


def write_a_campaign(page: Page) -> None:
    page.goto("/admin/campaigns/campaign/add/")
    page.locator("#id_name").fill("Harbour letter 1")
    page.locator("#id_subject").fill("{{ first_name }}, the ferry runs again")
    page.locator("#id_preheader").fill("From Monday, every hour")
    page.locator("#id_from_name").fill("The Harbour")
    page.locator("#id_from_email").fill("news@example.org")
    page.get_by_label(f"Harbour letter ({READERS})").first.check()
    page.locator("#id_html").fill(HTML)
    page.get_by_role("button", name=re.compile("preview", re.I)).click()


def preview_it(page: Page) -> None:
    expect(page.locator(".pp-mail .pp-subject")).to_have_text("Ada0, the ferry runs again")
    wide, narrow = page.locator(".pp-letter-desktop").first, page.locator(".pp-letter-phone")
    expect(wide).to_have_attribute("sandbox", "")
    expect(page.frame_locator(".pp-letter-desktop >> nth=0").locator("body")).to_contain_text(
        "Dear Ada0 from Turku"
    )
    page.locator("label[for=pp-phone]").click()
    expect(wide).to_be_hidden()
    box = narrow.bounding_box()
    assert box and box["width"] == 375
    expect(page.frame_locator(".pp-letter-phone").locator("body")).to_contain_text("the ferry runs")
    page.locator("label[for=pp-text]").click()
    expect(page.frame_locator(".pp-stage-text .pp-letter-desktop").locator("body")).to_contain_text(
        "Dear Ada0 from Turku"
    )


def send_a_test(page: Page, site: Site) -> None:
    page.get_by_role("link", name="Send a test").click()
    page.locator("#id_addresses").fill("proof@example.org")
    page.get_by_role("button", name="Send the test").click()
    expect(page.get_by_text("1 test letter is on its way.")).to_be_visible()
    site.wait_for_letters(1)
    proof = site.letters_to("proof@example.org")[0]
    assert proof["Subject"] == "Ada0, the ferry runs again"


def send_it(page: Page) -> None:
    page.get_by_role("link", name="Preflight and send").click()
    expect(page.locator("#audience-count")).to_have_text(str(READERS))
    expect(page.get_by_text("Nothing to complain about.")).to_be_visible()
    page.get_by_role("button", name=f"Send now to {READERS} readers").click()


def watch_it_finish(page: Page) -> None:
    expect(page.get_by_text("It is on its way.")).to_be_visible()
    page.evaluate("window.isTheSamePage = true")
    expect(page.locator("[data-part=percent]")).to_have_text("100 %")
    expect(page.locator("[data-state=sent] b")).to_have_text(str(READERS))
    expect(page.locator(".pp-head .pp-badge")).to_have_text("Finished")
    expect(page.locator("[data-refresh=timeline]")).to_contain_text("Finished")
    assert page.evaluate("window.isTheSamePage"), "the page was loaded again"


# ---------------------------------------------------------------------------- pause and resume


def test_a_paused_campaign_sends_nothing_more_until_it_is_resumed(
    chromium: Browser, editor: User, tmp_path: Path
):
    news = MailingList.objects.create(name="Harbour letter", label="harbour-letter")
    readers = make_readers(news, 60)
    # Slow enough that nobody can be too late with the button: 60 letters take 30 seconds.
    with (
        SMTPServer(rules=[Rule(At.FINAL_DOT, delay=0.5)]) as slow,
        running_site(tmp_path, slow, SMTP_CONNECTIONS="1", DELIVERY_CYCLE_BATCH_SIZE="4") as site,
        at_the_desk(chromium, site) as page,
    ):
        campaign = send_now(page, news)
        watch_until(page, campaign, "Sending")
        site.wait_for_letters(2)
        page.get_by_role("button", name="Pause").click()
        expect(page.locator("[data-part=waiting]")).to_contain_text("until someone resumes it")
        # What was on the wire has come to its end, and every letter is accounted for.
        for state in ("claimed", "sending"):
            expect(page.locator(f"[data-state={state}] b")).to_have_text("0")
        sent = int(page.locator("[data-state=sent] b").inner_text())
        assert len(slow.accepted) == sent < 60
        expect(page.locator("[data-state=queued] b")).to_have_text(str(60 - sent))

        slow.rules.clear()
        page.get_by_role("button", name="Resume").click()
        watch_until(page, campaign, "Finished")
        expect(page.locator("[data-state=sent] b")).to_have_text("60")

    assert Counter(letter.rcpt_to[0] for letter in slow.accepted) == Counter(
        {reader.email: 1 for reader in readers}
    )


# ---------------------------------------------------------------- unsubscribing, and what bounces


def test_a_reader_leaves_by_the_letters_own_link_and_a_bounced_one_is_found(
    chromium: Browser, editor: User, smtp: SMTPServer, tmp_path: Path
):
    news = MailingList.objects.create(name="Harbour letter", label="harbour-letter")
    by_button, by_click, gone, stays = (reader.email for reader in make_readers(news, 4))
    with running_site(tmp_path, smtp) as site, at_the_desk(chromium, site) as page:
        first = send_now(page, news, name="First letter")
        watch_until(page, first, "Finished")

        leave_by_the_page(chromium, unsubscribe_link(site.letters_to(by_button)[0]))
        leave_by_one_click(unsubscribe_link(site.letters_to(by_click)[0]))
        site.comes_back(report_about(site, gone))

        find_the_bounced_reader(page, gone)
        second = send_now(page, news, name="Second letter")
        watch_until(page, second, "Finished")
        assert [letter.rcpt_to for letter in smtp.accepted[4:]] == [[stays]]

        ask(page, by_button, "Second letter", "unsubscribed from Harbour letter")
        expect(answer(page, "Second letter")).to_contain_text("in a letter of the campaign First")
        ask(page, by_click, "Second letter", "one-click unsubscribe")
        ask(page, gone, "First letter", "Sent, but it bounced")
        expect(answer(page, "Second letter")).to_contain_text("the address is suppressed")
        ask(page, stays, "Second letter", "the provider's server accepted it")
        ask(page, "stranger@example.org", "Second letter", "no reader has it")


def leave_by_the_page(chromium: Browser, link: str) -> None:
    """In a browser of the reader's own, which is not logged in and gets no cookie."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(link)
    expect(page.get_by_role("heading")).to_have_text("Do you want to unsubscribe?")
    page.get_by_role("button", name="Unsubscribe").click()
    expect(page.get_by_role("heading")).to_have_text("You are unsubscribed")
    expect(page.get_by_text("Harbour letter")).to_be_visible()
    assert context.cookies() == []
    context.close()


def leave_by_one_click(link: str) -> None:
    """As a mailbox provider does it (RFC 8058 section 3.1): no cookie, no redirect."""
    body = urllib.parse.urlencode({"List-Unsubscribe": "One-Click"}).encode()
    with urllib.request.urlopen(urllib.request.Request(link, data=body)) as response:
        assert (response.status, response.url) == (200, link)


def report_about(site: Site, address: str, *, diagnostic: str = "", sender: str = "") -> bytes:
    """The report (RFC 3464) that a letter of the site brought back."""
    letter = site.taken_for(address)[0]
    mail = non_delivery_report(
        host="mx.example.net",
        return_path=letter.mail_from,
        recipient=address,
        letter=letter.content,
        queue_id="4F1A",
        at=datetime.now(UTC),
    ).decode("ascii")
    if diagnostic:
        mail = re.sub(
            r"(?m)^Diagnostic-Code: .*$", f"Diagnostic-Code: smtp; 550 5.1.1 {diagnostic}", mail
        )
    if sender:
        mail = re.sub(r"(?m)^(From|Subject): .*$", rf"\1: {sender}", mail, count=2)
    return mail.encode("ascii")


def find_the_bounced_reader(page: Page, address: str) -> None:
    page.goto("/admin/")
    in_the_sidebar(page, "Bounces").click()
    page.get_by_role("link", name=address).click()
    content = page.locator("#content")
    expect(content).to_contain_text("Hard")
    expect(content).to_contain_text(f"550 5.1.1 <{address}>: User unknown")
    page.get_by_role("link", name="Letter", exact=True).click()

    story = page.locator(".pp-timeline")
    expect(page.locator(".pp-head")).to_contain_text("Bounced")
    expect(story).to_contain_text("250 2.0.0")
    expect(story).to_contain_text("It bounced")
    expect(story).to_contain_text("The address was suppressed.")
    page.get_by_role("link", name="Other campaigns").click()
    expect(answer(page, "First letter")).to_contain_text("Sent, but it bounced")


def answer(page: Page, campaign: str) -> Locator:
    return page.locator(".pp-answers li", has=page.get_by_role("link", name=campaign))


def ask(page: Page, address: str, campaign: str, expected: str) -> None:
    page.goto("/admin/delivery/delivery/why/")
    page.get_by_label("Which address?").fill(address)
    page.get_by_role("button", name="Ask").click()
    expect(answer(page, campaign)).to_contain_text(expected)


def plain(letter: EmailMessage) -> str:
    part = letter.get_body(("plain",))
    assert part is not None
    return part.get_content()


# --------------------------------------------------------------------- hostile text, everywhere


def hostile(canary: Canary) -> str:
    """What an attacker writes wherever he can, in 200 characters."""
    return (
        '"><script>alert("Mallory")</script><img src=x onerror=alert("Mallory")>'
        f'<svg onload=alert("Mallory")><meta http-equiv=refresh content="0;url={canary.url}">'
        f"<img src={canary.url}/i>"
    )


@pytest.mark.one_database
def test_hostile_text_from_outside_stays_text_on_every_page(
    chromium: Browser, editor: User, tmp_path: Path
):
    """From a CSV file, a letter, an SMTP reply and a bounce, through the real channels."""
    with (
        Canary() as canary,
        SMTPServer() as smtp,
        running_site(tmp_path, smtp) as site,
        at_the_desk(chromium, site) as page,
    ):
        payload = hostile(canary)
        smtp.rules.append(Rule(At.RCPT, f"550 5.7.1 {payload}", address="refused@*"))
        job = hostile_import(page, payload, tmp_path)
        expect(page.locator("#refused")).to_contain_text("Mallory")
        campaign = send_now(
            page,
            job.mailing_list,
            name=payload[:200],
            subject=payload,
            html=HTML.replace("</body>", "<p>{{ name }} {{ nick }}</p><p>The end</p></body>"),
        )
        watch_until(page, campaign, "Finished")
        site.comes_back(report_about(site, "gone@example.org", diagnostic=payload, sender=payload))

        traps = Traps(page, canary, "Mallory")
        for address in pages_with_hostile_text(campaign, job):
            page.goto(address)
            assert "Mallory" in page.content(), f"{address} shows none of it: a test of nothing"
            assert traps.look() == [], address
            assert page.url == site.url + address

        # The letter alone may be markup: in a frame that can do nothing, and by itself as well.
        page.goto(f"/admin/campaigns/campaign/{campaign.pk}/preview/")
        letter = page.frame_locator(".pp-letter-desktop >> nth=0").locator("body")
        expect(letter).to_contain_text("The end")
        address = page.locator(".pp-letter-desktop").first.get_attribute("src")
        page.goto(f"{site.url}{address}")
        expect(page.locator("body")).to_contain_text("The end")
        assert page.url == f"{site.url}{address}"
        assert (traps.sprung, canary.calls) == ([], [])


def hostile_import(page: Page, payload: str, folder: Path) -> ImportJob:
    """Readers with hostile names, from a file with a hostile name."""
    news = MailingList.objects.create(name=payload[:120], label="news", description=payload)
    file = folder / "upload.csv"
    cell = payload.replace('"', '""')
    rows = [f'{who}@example.org,"{cell}",en,"{cell}"' for who in ("gone", "refused", "fine")]
    rows.append(f'"{cell}","{cell}",en,')
    file.write_text("email,name,language,nick\n" + "\n".join(rows))
    job = imports.new_job(news, file, file_name=payload.replace("/", "_"))
    page.goto(f"/admin/campaigns/importjob/{job.pk}/columns/")
    page.get_by_role("button", name="Start the import").click()
    expect(page.locator("#refused")).to_contain_text("Mallory")
    return job


def pages_with_hostile_text(campaign: Campaign, job: ImportJob) -> list[str]:
    """Every page of the admin that shows a word from outside."""
    gone, refused = (
        Delivery.objects.get(rcpt_to=f"{who}@example.org") for who in ("gone", "refused")
    )
    bounce = gone.bounces.get()
    rows = {
        "campaigns": [campaign, job, job.mailing_list, gone.subscriber],
        "delivery": [gone, refused],
        "bounces": [bounce, bounce.received_mail],
    }
    changes = [
        f"/admin/{app}/{row._meta.model_name}/{row.pk}/change/"
        for app, found in rows.items()
        for row in found
    ]
    lists = [
        f"/admin/{name}/"
        for name in (
            "campaigns/campaign", "campaigns/importjob", "campaigns/mailinglist",
            "campaigns/subscriber", "campaigns/subscription", "delivery/delivery",
            "bounces/receivedmail",
        )
    ]  # fmt: skip
    asked = [
        f"/admin/delivery/delivery/why/?address={who}%40example.org" for who in ("gone", "refused")
    ]
    suppression = Suppression.objects.get(address_key="gone@example.org")
    return [
        "/admin/",
        *lists,
        *changes,
        *asked,
        f"/admin/campaigns/campaign/{campaign.pk}/preview/",
        f"/admin/campaigns/suppression/{suppression.pk}/change/",
    ]


@pytest.mark.one_database
def test_the_traps_of_these_tests_spring(chromium: Browser):
    """Or else the test above would prove nothing: the same text, on a page that trusts it."""
    with Canary() as canary:
        page = chromium.new_page()
        traps = Traps(page, canary, "Mallory")
        page.set_content(f"<p title=x{hostile(canary)}</p>")
        page.wait_for_url(f"{canary.url}/**")
        caught = " ".join(traps.look())
        page.close()
    assert "dialog 'Mallory'" in caught
    assert f"request {canary.url}/i" in caught
    assert "/i" in canary.calls


@pytest.mark.one_database
def test_the_look_at_a_page_finds_markup_that_has_not_acted_yet(chromium: Browser):
    with Canary() as canary:
        page = chromium.new_page()
        traps = Traps(page, canary, "Mallory")
        page.evaluate(
            "text => { document.body.innerHTML = text }",
            '<script>// Mallory</script><p onclick="Mallory()">'
            f'<meta http-equiv="Refresh" content="9999"><a href="{canary.url}">Mallory</a>',
        )
        found = traps.look()
        page.close()
    assert found == ["script", "<p onclick>", "meta", "<a href>"]
