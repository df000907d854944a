"""The login in a real browser: what its owner does works, another site's page gets nowhere."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.browser.driver import click, open_browser, wait_for
from tests.servers import LabServer

pytestmark = pytest.mark.browser
LAB = ".jp-DirListing-item"
LOGIN = "input[name=password]"


@contextlib.contextmanager
def serve_page(html: str) -> Iterator[str]:
    """The address of a page on another site: `localhost` is not the same site as 127.0.0.1."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_printed_url_logs_in_once_and_for_all(lab_server: LabServer, tmp_path: Path):
    with open_browser(tmp_path) as driver:
        driver.get(lab_server.url("lab"))
        wait_for(driver, LAB, timeout_seconds=60)
        driver.refresh()
        wait_for(driver, LAB, timeout_seconds=60)
        # Typed, or opened from a bookmark.
        driver.get(f"http://127.0.0.1:{lab_server.port}/lab")
        wait_for(driver, LAB, timeout_seconds=60)


def test_the_printed_url_works_as_a_link_on_another_site(lab_server: LabServer, tmp_path: Path):
    # A chat, a mail in the browser, a notebook elsewhere.
    link = f'<a id="open" href="{lab_server.url("lab")}">open</a>'
    with serve_page(link) as address, open_browser(tmp_path) as driver:
        driver.get(address)
        click(driver, "#open", timeout_seconds=60)
        wait_for(driver, LAB, timeout_seconds=60)
        driver.refresh()
        wait_for(driver, LAB, timeout_seconds=60)


def test_another_sites_page_gets_nowhere_with_the_cookie(lab_server: LabServer, tmp_path: Path):
    url = f"http://127.0.0.1:{lab_server.port}/lab"
    page = f'<a id="open" href="{url}">open</a>'
    with serve_page(page) as address, open_browser(tmp_path) as driver:
        driver.get(lab_server.url("lab"))
        wait_for(driver, LAB, timeout_seconds=60)
        driver.get(address)
        click(driver, "#open", timeout_seconds=60)
        wait_for(driver, LOGIN, timeout_seconds=60)
