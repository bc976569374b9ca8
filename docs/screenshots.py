"""Makes docs/screenshots/*.png from a demo of its own: make screenshots

The pictures show what a person sees, in the order of the work. The demo runs on free ports in a
folder of its own and ends with the script.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

PICTURES = Path(__file__).parent / "screenshots"
WIDTH, HEIGHT = 1280, 800
PATIENCE_MS = 60_000
BOUNCED = "bounces-0001@letters.example.org"


@contextmanager
def demo(folder: str) -> Iterator[subprocess.Popen[str]]:
    """The demo, talking to us."""
    process = subprocess.Popen(
        [sys.executable, "-m", "config.demo"],
        env=os.environ | {"PENNYPOST_VAR": folder},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def line_with(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """The first line of the demo's output in which the pattern is found."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(pattern, line):
            return found
    raise SystemExit(f"The demo ended before it said {pattern!r}.")


def log_in(
    browser: Browser, url: str, password: str, *, width: int = WIDTH, scheme: str = "light"
) -> Page:
    context = browser.new_context(
        base_url=url,
        viewport={"width": width, "height": HEIGHT},
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto("/admin/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(re.compile("/admin/$"))
    return page


def picture(page: Page, name: str, *, height: int = HEIGHT) -> None:
    """The upper ``height`` pixels of the window, when everything in it is there."""
    page.wait_for_load_state("load")
    page.evaluate("document.fonts.ready")
    size = page.viewport_size or {"width": WIDTH}
    page.set_viewport_size({"width": size["width"], "height": height})
    page.screenshot(path=PICTURES / f"{name}.png", animations="disabled")


def while_it_sends(page: Page) -> None:
    """A campaign half way; the demo needs some ten seconds for all of it."""
    while page.goto("/admin/campaigns/campaign/1/change/").status == 404:  # type: ignore[union-attr]
        page.wait_for_timeout(200)
    while (page.locator(".pp-head .pp-badge").count()) == 0:
        page.reload()
    expect(page.locator("[data-part=percent]")).to_have_text(re.compile(r"^[4-9]\d %"))
    picture(page, "sending", height=680)


def afterwards(page: Page, readers: Path) -> None:
    page.goto("/admin/campaigns/importjob/add/")
    page.get_by_label("Into the list").select_option(index=1)
    page.locator("#id_file").set_input_files(readers)
    page.get_by_role("button", name="Upload and choose columns").click()
    expect(page.locator("[data-swap=preview] table")).to_be_visible()
    picture(page, "import-columns", height=900)

    page.goto("/admin/campaigns/campaign/1/change/")
    page.get_by_role("button", name="Duplicate").click()
    page.goto(page.url.replace("/change/", "/preview/"))
    letter = page.frame_locator(".pp-letter-desktop >> nth=0")
    expect(letter.locator("body")).to_contain_text("Harbour")
    picture(page, "preview", height=900)
    page.get_by_role("link", name="Preflight and send").click()
    picture(page, "preflight", height=760)

    page.goto(f"/admin/delivery/delivery/?q={BOUNCED}")
    page.get_by_role("link", name=BOUNCED).click()
    picture(page, "story", height=760)
    page.goto(f"/admin/delivery/delivery/why/?address={BOUNCED}")
    picture(page, "why", height=420)
    page.goto("/admin/bounces/bounce/")
    picture(page, "bounces", height=640)


def on_a_phone_at_night(page: Page) -> None:
    page.goto("/admin/campaigns/campaign/1/change/")
    picture(page, "phone-dark", height=844)


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    expect.set_options(timeout=PATIENCE_MS)
    with (
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as playwright,
        demo(folder) as process,
    ):
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or None, args=["--no-sandbox"]
        )
        url, password = line_with(
            process, r"(http://\S+)/admin/\s+user admin, password (\S+)"
        ).groups()
        page = log_in(browser, url, password)
        while_it_sends(page)
        line_with(process, "All is running")
        afterwards(page, Path(folder) / "demo" / "readers.csv")
        on_a_phone_at_night(log_in(browser, url, password, width=390, scheme="dark"))
        browser.close()


if __name__ == "__main__":
    main()
