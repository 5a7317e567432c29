"""A real browser for the tests that look at pages as a person does."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


_WITHOUT_WEBGL = "--disable-3d-apis"

BLIND_POST = """async ([url, body]) => {
    const sent = new Blob([body]);  // of no content type, as a page may send it without asking
    await fetch(url, {method: "POST", mode: "no-cors", body: sent});
}"""


@contextmanager
def chromium(*, webgl: bool = False) -> Iterator[Browser]:
    """Run Debian's Chromium; no other event loop may run in this thread meanwhile.

    With WebGL, Prefect's page of a run shows its graph, and draws it all the time: without a
    graphics card that keeps a core busy.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "These tests need Chromium on the PATH (Debian's package chromium)"
    with sync_playwright() as playwright:
        flags = _FLAGS if webgl else [*_FLAGS, _WITHOUT_WEBGL]
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@contextmanager
def page_of_another_site(browser: Browser) -> Iterator[Page]:
    """A page on another port of this machine, open in a browser."""

    class Blank(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Blank) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{site.server_address[1]}/")
        yield page
        page.close()
        site.shutdown()
