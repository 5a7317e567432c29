"""A real browser for the tests that look at pages as a person does."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

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
