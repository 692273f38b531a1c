"""A real browser without a driver: Chromium, told what to do through the pipe of its own protocol.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Headless, and without what a browser loads for itself.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


KEYS = {"Tab": (9, ""), "Enter": (13, "\r")}


class Page:
    """A tab. Made by `opened`."""

    def __init__(self, out: int, into: int) -> None:
        self._out, self._into = out, into
        self._number, self._rest = 0, b""
        self._session: dict[str, str] = {}
        self.events: dict[str, list[dict[str, Any]]] = defaultdict(list)  # by name, of the domains enabled
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the answer to one command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | self._session
        os.write(self._into, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                ready, _, _ = select.select([self._out], [], [], 60)
                assert ready, f"Chromium does not answer {method}"
                more = os.read(self._out, 1 << 20)
                assert more, "Chromium has ended"
                self._rest += more
            text, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(text)
            if "method" in answer:
                self.events[answer["method"]].append(answer["params"])
            elif answer["id"] == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def open(self, address: str) -> None:
        self.call("Page.navigate", url="about:blank")  # or another fragment of the same page loads nothing
        self.call("Page.navigate", url=address)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float) -> Any:
        """Return the value of an expression when it is something, or None after so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := self.evaluate(expression):
                return value
            time.sleep(0.2)
        return None

    def press(self, key: str) -> None:
        """Press a key of `KEYS` and let it go."""
        code, text = KEYS[key]
        for kind in ("keyDown", "keyUp"):
            options = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **options)

    def tab_to(self, expression: str) -> None:
        """Press Tab until an expression of JavaScript about ``document.activeElement`` is true."""
        for _ in range(40):
            self.press("Tab")
            if self.evaluate(expression):
                return
        raise AssertionError(f"Tab does not reach {expression}")

    def shoot(self, file: Path) -> None:
        """Write what is seen as a PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def opened(profile: Path, width: int = 1600, height: int = 900) -> Iterator[Page]:
    """Start a browser with one tab.

    Args:
        profile: a new folder, which Chromium fills.
    """
    assert CHROMIUM
    (theirs, into), (out, answers) = os.pipe(), os.pipe()
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
    # It reads from the descriptor 3 and writes to 4.
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{answers}', "-", *command, "--remote-debugging-pipe"],
        pass_fds=(theirs, answers),
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    os.close(answers)
    try:
        yield Page(out, into)
    finally:
        os.close(into)  # Chromium ends with its pipe
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(out)
