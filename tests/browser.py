"""A page in headless Chromium, driven through a pipe: no library, no port.

Chrome's DevTools protocol: JSON messages that end with a null byte, to file descriptor 3 and from 4 of the browser.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WAIT = 60.0  # seconds for whatever is waited for


def chromium() -> str | None:
    """Where it is installed; None where it is not (Debian: apt-get install chromium)."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@dataclass
class Page:
    """One page of a browser.

    Attributes:
        errors: what the page logged as an error, and exceptions that nobody caught.
        requests: addresses that the page asked for, its own file and data in addresses left out.
    """

    to_browser: int
    from_browser: int
    session: str = ""
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _sent: int = 0
    _unread: bytes = b""

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command, and its result."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._sent:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        """The next message; events are noted."""
        until = time.monotonic() + WAIT
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self.from_browser], [], [], max(0, until - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser does not answer")
            self._unread += os.read(self.from_browser, 2**20)
        line, _, self._unread = self._unread.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, found: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = found["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(each.get("value", each.get("description"))) for each in found["args"]))
        elif method == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.errors.append(found["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            address = found["request"]["url"]
            if not address.startswith(("file:", "data:", "blob:")):
                self.requests.append(address)

    def open(self, file: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Show a file at a width, in pixels, and wait until its script says that it is ready."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.send("Emulation.setTouchEmulationEnabled", enabled=width < 600)
        scheme = "dark" if dark else "light"
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=file.resolve().as_uri())
        self.wait(f"location.href === '{file.resolve().as_uri()}' && document.documentElement?.dataset.ready === 'yes'")

    def ask(self, script: str) -> Any:
        """The value of an expression in the page; a promise's value where it is one."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until an expression is true."""
        until = time.monotonic() + WAIT
        while not self.ask(condition):
            if time.monotonic() > until:
                raise TimeoutError(f"{condition}: not so; errors of the page: {self.errors}")
            time.sleep(0.05)

    def screenshot(self, file: Path) -> None:
        """The whole page as a PNG."""
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(program: str, folder: Path) -> Iterator[Page]:
    """A page of a browser that ends with the block.

    Args:
        program: see `chromium`.
        folder: for what the browser keeps.
    """
    (theirs_in, to_browser), (from_browser, theirs_out) = os.pipe(), os.pipe()
    command = [
        *(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
        *("--no-first-run", "--disable-extensions", "--disable-background-networking", f"--user-data-dir={folder}"),
    ]
    shell = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"'
    process = subprocess.Popen(
        ["/bin/bash", "-c", shell, "browser", *command], pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        page = Page(to_browser, from_browser)
        target = page.send("Target.createTarget", url="about:blank")["targetId"]
        page.session = page.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{part}.enable")
        yield page
    finally:
        process.terminate()
        process.wait(WAIT)
        os.close(to_browser)
        os.close(from_browser)
