"""A headless Chromium, spoken to over a pipe: no port, no library."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
LIMIT_S = 60.0


def browser() -> str | None:
    """The program, None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab; `events` holds all that the browser told."""

    def __init__(self, to: int, from_: int) -> None:
        self.to, self.from_ = to, from_
        self.number, self.rest, self.session = 0, b"", ""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> Any:
        """Send a command of the DevTools protocol and wait for its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        return self.wait(lambda x: x.get("id") == self.number)

    def wait(self, wanted: Any) -> Any:
        """The first message that is wanted; the others are events."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            while b"\0" in self.rest:
                one, _, self.rest = self.rest.partition(b"\0")
                message = json.loads(one)
                if "method" in message:
                    self.events.append(message)
                if wanted(message):
                    assert "error" not in message, message["error"]
                    return message.get("result", message)
            if select.select([self.from_], [], [], 1.0)[0]:
                more = os.read(self.from_, 1 << 16)
                assert more, "the browser ended"
                self.rest += more
        raise AssertionError(f"no answer in {LIMIT_S:.0f} s")

    def open(self, path: Path) -> None:
        """Load a file and wait until it is shown; forgets what was told before."""
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        if not self.told("Page.loadEventFired"):
            self.wait(lambda x: x.get("method") == "Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def told(self, *methods: str) -> list[dict[str, Any]]:
        """Events of these kinds."""
        return [x["params"] for x in self.events if x["method"] in methods]

    def set(self, width: int, dark: bool = False) -> None:
        """Width of the window in CSS pixels, and which colours are preferred."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """Save the whole page as PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def opened(program: str, folder: Path) -> Iterator[Page]:
    """A browser with one empty tab, for as long as the block runs."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # The browser reads from descriptor 3 and writes to 4.
    script = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(
        ["bash", "-c", script, program, *flags],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        page = Page(ours_out, ours_in)
        target = page.call("Target.createTarget", url="about:blank")["targetId"]
        attached = page.call("Target.attachToTarget", targetId=target, flatten=True)
        page.session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        yield page
    finally:
        os.close(ours_out)
        process.terminate()
        process.wait(timeout=LIMIT_S)
        os.close(ours_in)
