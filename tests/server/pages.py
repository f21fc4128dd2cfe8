"""What the tests of the page share: to visit it, to enter a token, to send a scan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from browser import Browser, Page
from serving import Server

STATE = "document.querySelector('.job').dataset.state"
DRAWN = (
    "document.querySelectorAll('.plane').length === 3 && document.querySelectorAll('.plane[data-shown]').length === 3"
)
READY = "document.querySelector('.drop') !== null"


@contextmanager
def visiting(browser: Browser, server: Server) -> Iterator[Page]:
    """Open the page of a server; at the end nothing went wrong in it, and nobody else was asked."""
    page = browser.open(f"{server.url}/")
    yield page
    assert [error for error in page.errors if " 401 " not in error] == []  # the console tells of a wrong token
    assert {url for url in page.requests if not url.startswith((f"{server.url}/", "blob:", "data:"))} == set()
    page.close()


def enter(page: Page, token: str) -> None:
    """Enter a token where it is asked for."""
    page.until("document.querySelector('#token-dialog').open")
    page.js("document.querySelector('#token').value = ''; document.querySelector('#token').focus()")
    page.write(token)
    page.key("Enter")


def segment(page: Page, *files: Path, until: str = "done") -> None:
    """Send a scan, and wait for a state of its job, or for its planes."""
    page.until(READY)
    page.choose("#drops input.files", *files)
    page.until("!document.querySelector('#send').disabled")
    page.click("#send")
    page.until(f"{STATE} === '{until}'")
    if until == "done":
        page.until(DRAWN)
