"""A headless Chromium driven over the DevTools protocol's pipe, without any package."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

_EXEC = """
import fcntl, os, sys
pair = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(pair[0], 3), os.dup2(pair[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""  # the protocol's pipe is file descriptors 3 and 4


class Page:
    """One page of the browser: runs JavaScript, clicks, types, takes images."""

    def __init__(self, to_browser: BinaryIO, from_browser: BinaryIO) -> None:
        self._to, self._from = to_browser, from_browser
        self._ids = itertools.count(1)
        self._session: str | None = None
        self.problems: list[str] = []
        target = self._call("Target.createTarget", {"url": "about:blank"})
        attach = {"targetId": target["targetId"], "flatten": True}
        self._session = self._call("Target.attachToTarget", attach)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": params or {}}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _read(self) -> bytes:
        content = bytearray()
        while (byte := self._from.read(1)) != b"\0":
            assert byte, "the browser ended"
            content += byte
        return bytes(content)

    def _note(self, event: dict[str, Any]) -> None:
        """Keep what a clean page never does: errors, and requests that leave the computer."""
        params = event.get("params", {})
        if event["method"] == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        if event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])
        if event["method"] == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:", "about:")):
                self.problems.append(f"asked for {url}")

    def open(self, address: str) -> None:
        """Go to an address and wait until it has loaded."""
        self._call("Page.navigate", {"url": address})
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression; a promise is awaited."""
        answer = self._call(
            "Runtime.evaluate",
            {"expression": script, "returnByValue": True, "awaitPromise": True},
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"never came true: {condition}"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Click with the mouse in the middle of the first element that matches."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            event = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
            self._call("Input.dispatchMouseEvent", event)

    def type(self, selector: str, text: str) -> None:
        """Click into a field and type."""
        self.click(selector)
        self._call("Input.insertText", {"text": text})

    def press(self, *keys: str) -> None:
        """Press one key after the other: characters, or names such as ArrowLeft."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            for kind in ("keyDown", "keyUp"):
                extra = text if kind == "keyDown" else {}
                self._call("Input.dispatchKeyEvent", {"type": kind, "key": key, **extra})

    def resize(self, width: int, height: int) -> None:
        """Set the size of the visible part in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", size)

    def screenshot(self) -> str:
        """The visible part as base64 of a PNG."""
        return self._call("Page.captureScreenshot")["data"]


def find_chromium() -> str | None:
    """Path of an installed Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


@contextlib.contextmanager
def open_page() -> Iterator[Page]:
    """A fresh page of a headless browser that ends with the block."""
    chromium = find_chromium()
    assert chromium is not None
    read_commands, write_commands = os.pipe()
    read_answers, write_answers = os.pipe()
    with (
        tempfile.TemporaryDirectory() as profile,
        os.fdopen(write_commands, "wb") as to_browser,
        os.fdopen(read_answers, "rb") as from_browser,
    ):
        browser = subprocess.Popen(
            [
                *(sys.executable, "-c", _EXEC, str(read_commands), str(write_answers), chromium),
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--autoplay-policy=no-user-gesture-required", "--mute-audio"),
                *("--remote-debugging-pipe", f"--user-data-dir={profile}"),
            ],
            pass_fds=(read_commands, write_answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        try:
            page = Page(to_browser, from_browser)
            yield page
        finally:
            browser.terminate()
            browser.wait(timeout=20)
            time.sleep(0.2)  # its helpers still write into the profile for a moment
