"""A headless Chromium for tests: pages opened, looked at, hovered and typed into, over its debugging pipe.

No driver is needed: the protocol is JSON between NUL bytes on two file descriptors.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def found() -> str | None:
    """The browser's path, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One browser process; ``open`` gives a tab."""

    def __init__(self, profile: Path) -> None:
        executable = found()
        assert executable is not None
        ends = [*os.pipe(), *os.pipe()]
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]  # it reads from 3 and writes to 4
        for end in ends:
            os.close(end)
        read_by_it, self.out, self.into, written_by_it = high
        command = f'exec "$0" "$@" 3<&{read_by_it} 4>&{written_by_it}'
        arguments = [
            executable, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
            "--disable-background-networking", f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            ["bash", "-c", command, *arguments],
            pass_fds=(read_by_it, written_by_it),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_by_it)
        os.close(written_by_it)
        self.events: list[dict[str, Any]] = []
        self._held, self._last = b"", 0

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """A command's result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            got = self.read()
            if got.get("id") == self._last:
                assert "error" not in got, (method, got["error"])
                return got["result"]

    def read(self, seconds: float = 60.0) -> dict[str, Any]:
        """The next message; events are kept as well."""
        end = time.monotonic() + seconds
        while b"\0" not in self._held:
            ready, _, _ = select.select([self.into], [], [], max(end - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            part = os.read(self.into, 1 << 16)
            assert part, "the browser has ended"
            self._held += part
        message, _, self._held = self._held.partition(b"\0")
        found = json.loads(message)
        if "method" in found:
            self.events.append(found)
        return found

    def open(self, path: Path, *, width: int = 1440, height: int = 1000, dark: bool = False) -> Tab:
        """A tab with this page, loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        tab.call("Emulation.setEmulatedMedia", features=scheme)
        tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                 mobile=width < 600)  # fmt: skip
        tab.call("Page.navigate", url=path.resolve().as_uri())
        while not tab.events("Page.loadEventFired"):
            self.read()
        return tab

    def close(self) -> None:
        """Ends the process."""
        self.process.terminate()
        self.process.wait(10)
        os.close(self.out)
        os.close(self.into)


class Tab:
    """An open page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command to this page."""
        return self.browser.call(method, self.session, **params)

    def events(self, method: str) -> list[dict[str, Any]]:
        """The parameters of the events of a kind, so far."""
        return [e["params"] for e in self.browser.events if e["method"] == method and e.get("sessionId") == self.session]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def complaints(self) -> list[Any]:
        """Errors and warnings on the console, exceptions, and everything loaded but the page itself."""
        self.evaluate("0")
        logged = [e["entry"] for e in self.events("Log.entryAdded") if e["entry"]["level"] in ("error", "warning")]
        asked = [e["request"]["url"] for e in self.events("Network.requestWillBeSent")]
        printed = [e for e in self.events("Runtime.consoleAPICalled") if e["type"] in ("error", "warning")]
        return [*logged, *printed, *self.events("Runtime.exceptionThrown"), *asked[1:]]

    def hover(self, selector: str, index: int = 0) -> None:
        """Moves the mouse onto an element, which is scrolled into view."""
        box = self.evaluate(
            f"(() => {{ const e = document.querySelectorAll({selector!r})[{index}];"
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); const b = e.getBoundingClientRect();"
            "return [b.x + Math.min(b.width, 60) / 2, b.y + b.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])

    def press(self, key: str, code: int, text: str = "") -> None:
        """One key, down and up."""
        given = {"key": key, "code": key, "windowsVirtualKeyCode": code} | ({"text": text} if text else {})
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **given)
        self.call("Input.dispatchKeyEvent", type="keyUp", **given)

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        import base64

        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))
