"""A real headless Chromium for the tests of pages, and traps for what must never happen in it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page, Request

# The first is Chromium without its windows, and needs a third less processor time.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# How long a page may take on a busy machine before something is wrong.
PATIENCE_MS = 30_000
NO_BROWSER = f"No browser is installed; looked for {', '.join(NAMES)} on the PATH."


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The system's Chromium. Without one these tests are skipped, but in CI they fail: a page
    test that nobody runs proves nothing.

    One for each module, not for the session: while it lives, Playwright's event loop counts as
    running in this thread, and the tests of other modules could not run one of their own.
    """
    from playwright.sync_api import expect, sync_playwright

    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(NO_BROWSER)
    expect.set_options(timeout=PATIENCE_MS)
    # Django sees that loop too, and would refuse the database.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=path,
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            )
            yield browser
            browser.close()
    finally:
        del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


class Canary:
    """A web server on 127.0.0.1 that nobody has a reason to call. ``calls``: who did."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        calls = self.calls

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                calls.append(self.path)
                self.send_response(200)
                self.end_headers()

            do_POST = do_GET  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Canary:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Traps:
    """What hostile text does when it comes to life on a page; ``sprung`` says what it did.

    Dialogs and requests to the canary are heard as they happen. ``look`` finds in the page itself
    what would happen later: markup that the text has become instead of being shown as text.
    """

    # The marker stands in every payload. Attributes that only hold text may hold it.
    LOOK = """([marker, canary]) => {
        const found = [];
        for (const element of document.querySelectorAll("*")) {
            const name = element.localName;
            if (name === "script" && element.textContent.includes(marker)) found.push("script");
            if (name === "meta" && element.httpEquiv.toLowerCase() === "refresh") found.push(name);
            for (const attribute of element.getAttributeNames()) {
                const value = element.getAttribute(attribute);
                const acts = attribute.startsWith("on") && value.includes(marker);
                const goes = ["src", "href", "action", "formaction", "srcset", "data"]
                    .includes(attribute);
                const calls = goes && (value.startsWith(canary) || /^javascript:/i.test(value));
                if (acts || calls) found.push(`<${name} ${attribute}>`);
            }
        }
        return found;
    }"""

    def __init__(self, page: Page, canary: Canary, marker: str) -> None:
        self.canary = canary
        self.marker = marker
        self.sprung: list[str] = []
        page.on("dialog", self._dialog)
        page.on("request", self._request)
        self._page = page

    def _dialog(self, dialog: Dialog) -> None:
        self.sprung.append(f"dialog {dialog.message!r}")
        dialog.dismiss()

    def _request(self, request: Request) -> None:
        if request.url.startswith(self.canary.url):
            self.sprung.append(f"request {request.url}")

    def look(self) -> list[str]:
        """Everything that was caught so far, on this page and before."""
        found = self._page.evaluate(self.LOOK, [self.marker, self.canary.url])
        return [*self.sprung, *found, *self.canary.calls]
