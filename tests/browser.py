"""A real browser for tests: headless Chromium, driven by the W3C WebDriver protocol without a package for it.

with Browser() as browser:
    browser.open(path)
    browser.run("return document.title")
"""

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--disable-dev-shm-usage",
)  # fmt: skip
_WAIT_S = 600
"""For one answer: the machine may be busy."""


def _program(*names: str) -> str | None:
    return next((found for name in names if (found := shutil.which(name))), None)


class Browser:
    """One window; skips the test where there is no browser, fails under MIM_BENCH_REQUIRE_BROWSER."""

    def __init__(self) -> None:
        driver = _program("chromedriver")
        chrome = _program("chromium", "chromium-browser", "google-chrome", "chrome")
        if driver is None or chrome is None:
            reason = (
                "no chromium and chromedriver; Debian: apt-get install chromium chromium-driver"
            )
            if os.environ.get("MIM_BENCH_REQUIRE_BROWSER"):
                pytest.fail(reason)
            pytest.skip(reason)
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._driver = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._session = ""
        try:
            self._url = f"http://127.0.0.1:{self._port()}"
            options = {"binary": chrome, "args": [*_FLAGS, f"--user-data-dir={self._profile.name}"]}
            logs = {"browser": "ALL", "performance": "ALL"}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logs}
            told = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/session/{told['sessionId']}"
        except BaseException:
            self.close()
            raise

    def _port(self) -> int:
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            if match := re.search(r"started successfully on port (\d+)", line):
                return int(match[1])
        raise RuntimeError("chromedriver did not start")

    def _ask(self, method: str, path: str, content: object = None) -> Any:
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._url + path, body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_WAIT_S) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends browser and driver."""
        try:
            if self._session:
                self._ask("DELETE", self._session)
        finally:
            self._driver.terminate()
            self._driver.wait()
            if self._driver.stdout is not None:
                self._driver.stdout.close()
            self._profile.cleanup()

    def open(self, path: Path) -> None:
        """Loads a file, and waits for it."""
        self._ask("POST", self._session + "/url", {"url": path.resolve().as_uri()})

    def run(self, script: str, *arguments: object) -> Any:
        """The value that a script returns; `arguments[0]` and so on are its own."""
        content = {"script": script, "args": arguments}
        return self._ask("POST", self._session + "/execute/sync", content)

    def press(self, key: str) -> None:
        """A key, down and up, for what has the focus."""
        actions = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        content = {"actions": [{"type": "key", "id": "keys", "actions": actions}]}
        self._ask("POST", self._session + "/actions", content)

    def click(self, element: object) -> None:
        """A real click on an element that a script returned."""
        assert isinstance(element, dict)
        self._ask("POST", f"{self._session}/element/{next(iter(element.values()))}/click", {})

    def log(self, kind: str) -> list[dict[str, Any]]:
        """`browser`: the console; `performance`: what went over the network, among others; since last asked."""
        return self._ask("POST", self._session + "/se/log", {"type": kind})

    def requests(self) -> list[str]:
        """Addresses that were asked for since last asked."""
        told = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [
            event["params"]["request"]["url"]
            for event in told
            if event["method"] == "Network.requestWillBeSent"
        ]

    def tell(self, command: str, **content: object) -> Any:
        """A command of the Chrome DevTools protocol."""
        whole = {"cmd": command, "params": content}
        return self._ask("POST", self._session + "/goog/cdp/execute", whole)

    def resize(self, width: int, height: int = 900, *, is_phone: bool = False) -> None:
        """CSS pixels; a phone has two dots a pixel."""
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if is_phone else 1, mobile=is_phone,
        )  # fmt: skip

    def prefer(self, scheme: str) -> None:
        """`light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.tell("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """The window, or the whole page, as PNG."""
        shot = self.tell("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
