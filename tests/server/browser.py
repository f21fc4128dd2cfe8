"""Chromium without a window, told what to do over a pipe (Chrome DevTools protocol)."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
in_a_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
_WAIT = 120  # seconds, on a busy machine
_LOOK = 0.05
_KEYS = {"ArrowUp": 38, "ArrowDown": 40, "ArrowLeft": 37, "ArrowRight": 39, "Enter": 13, "Escape": 27, "Tab": 9}
# the browser reads commands from file 3 and answers into file 4
_LAUNCH = """
import fcntl, os, sys
for file, given in enumerate([fcntl.fcntl(int(each), fcntl.F_DUPFD, 10) for each in sys.argv[1:3]], 3):
    os.dup2(given, file)
os.execv(sys.argv[3], sys.argv[3:])
"""
_BOX = """(selector) => {
  const element = document.querySelector(selector);
  element.scrollIntoView({block: "center"});
  const box = element.getBoundingClientRect();
  return [box.x, box.y, box.width, box.height];
}"""
_SWITCHES = (
    "--headless=new", "--no-sandbox", "--no-first-run", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """One that runs; `pages` of it are told apart by their session."""

    def __init__(self, process: subprocess.Popen[bytes], into: int, out: int, downloads: Path) -> None:
        self.process, self._into, self._out, self.downloads = process, into, out, downloads
        self._number, self._rest = 0, b""
        self._answers: dict[int, dict[str, Any]] = {}
        self._pages: dict[str, Page] = {}

    def call(self, method: str, session: str = "", **given: Any) -> dict[str, Any]:
        """Send a command, and return its answer."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": given} | ({"sessionId": session} if session else {})
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._into, data) :]
        until = time.monotonic() + _WAIT
        while number not in self._answers:
            assert time.monotonic() < until, f"no answer to {method}"
            self.listen(until - time.monotonic())
        answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def listen(self, seconds: float) -> None:
        """Take what the browser says within some time."""
        if not select.select([self._out], [], [], max(0, seconds))[0]:
            return
        data = os.read(self._out, 1 << 20)
        assert data, f"the browser has ended: {self.process.poll()}"
        *messages, self._rest = (self._rest + data).split(b"\0")
        for each in map(json.loads, messages):
            if "id" in each:
                self._answers[each["id"]] = each
            elif each.get("sessionId") in self._pages:
                self._pages[each["sessionId"]].note(each["method"], each["params"])

    def open(self, url: str) -> Page:
        """Open a page, with storage of its own."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        self.call(
            "Browser.setDownloadBehavior", behavior="allow", browserContextId=context, downloadPath=str(self.downloads)
        )
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session, context)
        for domain in ("Runtime", "Log", "Network", "Page", "DOM"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setScrollbarsHidden", hidden=True)  # they would lie over the page
        page.size(1280, 1000)
        page.call("Page.navigate", url=url)
        return page


class Page:
    """A page; `errors` holds what its console said of errors, `requests` the addresses that it asked for."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser, self._session, self._context = browser, session, context
        self.errors: list[str] = []
        self.requests: list[str] = []

    def note(self, event: str, about: dict[str, Any]) -> None:
        """Keep what matters of an event."""
        if event == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(about["exceptionDetails"]))
        elif event == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
        elif event == "Runtime.consoleAPICalled" and about["type"] in {"error", "assert", "warning"}:
            self.errors.append(f"console {about['type']}: {json.dumps(about['args'])}")

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """Send a command about this page."""
        return self._browser.call(method, self._session, **given)

    def js(self, expression: str) -> Any:
        """Return the value of an expression; of a promise, what it brings."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, (expression, answer)
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        try:
            self.wait(lambda: self._try(expression))
        except TimeoutError:
            said = self.js("document.body.innerText")
            raise AssertionError(f"never true: {expression}\n{said}\n{self.errors}") from None

    def wait(self, happened: Callable[[], Any]) -> None:
        """Wait until something has happened."""
        end = time.monotonic() + _WAIT
        while not happened():
            if time.monotonic() > end:
                raise TimeoutError
            self._browser.listen(_LOOK)

    def _try(self, expression: str) -> Any:
        # while a page is loaded, nothing of it is there yet
        return self.js(f"(() => {{ try {{ return {expression}; }} catch (error) {{ return null; }} }})()")

    def text(self, selector: str) -> str:
        """Return the text that is seen of an element."""
        return self.js(f"document.querySelector({json.dumps(selector)}).innerText")

    def box(self, selector: str) -> list[float]:
        """Return where an element is, after it was scrolled to: left, top, width, height."""
        box = self.js(f"({_BOX})({json.dumps(selector)})")
        assert box[2] > 0, f"{selector} is not seen"
        return box

    def middle(self, selector: str, x: float = 0.5, y: float = 0.5) -> tuple[float, float]:
        """Return a point of an element."""
        left, top, width, height = self.box(selector)
        return left + x * width, top + y * height

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Click on an element with the mouse."""
        left, top = self.middle(selector, x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=left, y=top, button="left", clickCount=1)

    def wheel(self, selector: str, pixels: float) -> None:
        """Turn the mouse wheel over an element."""
        left, top = self.middle(selector)
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=left, y=top, deltaX=0, deltaY=pixels)

    def key(self, name: str) -> None:
        """Press a key."""
        about = {"key": name, "code": name, "windowsVirtualKeyCode": _KEYS[name]}
        text = {"text": "\r"} if name == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def write(self, text: str) -> None:
        """Type text into what has the focus."""
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, *files: Path) -> None:
        """Choose files for an input."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self.call("DOM.setFileInputFiles", files=[str(file) for file in files], objectId=found["result"]["objectId"])

    def drop(self, selector: str, *files: Path) -> None:
        """Drop files or folders onto an element."""
        left, top = self.middle(selector)
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=left, y=top, data=data)

    def size(self, width: int, height: int, *, scale: float = 1.0) -> None:
        """Give the page another size."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def dark(self, on: bool = True) -> None:
        """Let the page look as those who like it dark want it."""
        value = "dark" if on else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def picture(self, *, whole: bool = False) -> bytes:
        """Return a screenshot as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"])

    def downloaded(self, name: str) -> bytes:
        """Wait for a download to end, and return what came."""
        path = self._browser.downloads / name
        self.wait(path.is_file)  # it has another name until it is whole
        return path.read_bytes()

    def close(self) -> None:
        """Leave the page, with all that was stored for it."""
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Give a browser with its own profile, as long as the block lasts."""
    downloads = folder / "downloads"
    downloads.mkdir(parents=True)
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    words = [sys.executable, "-c", _LAUNCH, str(theirs_in), str(theirs_out), BROWSER, *_SWITCHES]
    words += [f"--user-data-dir={folder / 'profile'}", "about:blank"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(words, pass_fds=(theirs_in, theirs_out), stdout=log, stderr=log)
    os.close(theirs_in)
    os.close(theirs_out)
    browser = Browser(process, ours_out, ours_in, downloads)
    try:
        yield browser
    finally:
        with suppress(AssertionError, OSError):
            browser.call("Browser.close")
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(ours_in)
        os.close(ours_out)
