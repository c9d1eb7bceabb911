"""Chromium without a window, driven over its pipe: what a page logs, asks for, and looks like."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

PHONE, DESK = (390, 844), (1180, 900)


class Browser:
    """One page of a browser of its own. Messages end in a zero byte (`--remote-debugging-pipe`)."""

    def __enter__(self):
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if program is None:
            raise FileNotFoundError("chromium is not installed (Debian: apt install chromium)")
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self.out = os.pipe()
        self.into, theirs_out = os.pipe()

        def wire():
            # The browser reads 3 and writes 4, which may be what the pipes are called already.
            kept_in, kept_out = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(kept_in, 3)
            os.dup2(kept_out, 4)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe", "--no-first-run"]
        self.process = subprocess.Popen(
            [program, *flags, f"--user-data-dir={self.profile.name}"], preexec_fn=wire, close_fds=False, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.number, self.buffer, self.events, self.session = 0, b"", [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.into)
        self.profile.cleanup()

    def receive(self) -> dict:
        while b"\0" not in self.buffer:
            part = os.read(self.into, 1 << 16)
            if not part:
                raise EOFError("the browser ended")
            self.buffer += part
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method: str, **parameters) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def evaluate(self, expression: str):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def open(self, page: Path, size: tuple[int, int], theme: str) -> None:
        """Loads a file; what it logged and asked for is in `events` afterwards."""
        width, height = size
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.events = []
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def problems(self, page: Path) -> list[str]:
        """Messages, exceptions, dialogs, and requests for anything but the page itself and what is written in it."""
        found = []
        for event in self.events:
            method, told = event.get("method"), event.get("params", {})
            if method in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening") or method == "Runtime.consoleAPICalled":
                found.append(f"{method}: {json.dumps(told)[:200]}")
            if method == "Log.entryAdded":
                found.append(told["entry"]["text"])
            if method == "Network.requestWillBeSent":
                url = told["request"]["url"]
                if url != page.resolve().as_uri() and not url.startswith("data:"):
                    found.append(f"asks for {url}")
        return found

    def screenshot(self, to: Path) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        to.write_bytes(base64.b64decode(shot["data"]))
