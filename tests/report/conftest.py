"""Workdirs to report on, and a headless Chromium to look at the pages with.

The browser is spoken to over a pair of pipes in its DevTools protocol, so that no driver and no port is needed. A
message is a JSON object ended by a zero byte; the browser reads them from file descriptor 3 and writes to 4.
"""

import base64
import json
import math
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from lmjax.settings import Pretrain
from lmjax.settings.recipe_files import to_json
from lmjax.training.record import Recorder

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 300.0  # seconds for one answer; a cold start on a busy machine takes some
# A process between us and the browser moves the pipes to where the browser looks for them.
LAUNCH = """
import fcntl, os, sys
reads, writes = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(reads, 3)
os.dup2(writes, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
FLAGS = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --no-first-run"


class Browser:
    """One tab. `events` holds what it reported since the last `open`, as (method, parameters)."""

    def __init__(self, chromium: str) -> None:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        own = [*FLAGS.split(), "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}"]
        command = [sys.executable, "-c", LAUNCH, str(theirs_in), str(theirs_out), chromium, *own, "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), **quiet)
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer, self._number, self._session = b"", 0, None
        self.events: list[tuple[str, dict]] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        tab = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def open(self, path: Path, *, width: int, height: int = 900, scheme: str = "light") -> None:
        """Loads a file from disk and waits until it is there."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        phone = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.events = []
        answer = self.call("Page.navigate", url=path.resolve().as_uri())
        assert "errorText" not in answer, answer
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            self._receive()

    def value(self, expression: str):
        """What a JavaScript expression is on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page, not only what is in the window."""
        png = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(png))

    def call(self, method: str, **parameters) -> dict:
        """Sends a command and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            pass
        assert "error" not in answer, f"{method}: {answer}"
        return answer["result"]

    def close(self) -> None:
        os.close(self._out)  # the browser ends with its pipe
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        self._profile.cleanup()

    def _receive(self) -> dict:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the browser did not answer within {PATIENCE:.0f} s"
            part = os.read(self._in, 1 << 20)
            assert part, f"the browser ended with exit status {self._process.wait()}"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message


@pytest.fixture(scope="session")
def browser():
    chromium = next((path for name in NAMES if (path := shutil.which(name))), None)
    if chromium is None:
        pytest.skip(f"needs a browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")
    started = Browser(chromium)
    yield started
    started.close()


@pytest.fixture
def make_workdir(tmp_path):
    """A function that writes a run's folder through the recorder that a run uses, and returns it."""

    def make(lines=None, *, recipe=Pretrain(name="tiny"), summary=None, environment=None, name="run") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "recipe.json").write_text(to_json(recipe))
        for file, value in (("summary.json", summary), ("environment.json", environment)):
            if value is not None:
                (folder / file).write_text(json.dumps(value))
        if lines is not None:
            recorder = Recorder(folder, resumed_at=0)
            for line in lines:
                recorder.write(line["step"], line)
            recorder.close()
        return folder

    return make


@pytest.fixture
def make_log():
    """A function that gives the lines of a plausible log: one per `every` steps, every tenth with an evaluation."""

    def make(steps: int, every: int = 10, sample: str = "upon a time") -> list[dict]:
        lines = []
        for step in range(every, steps + 1, every):
            loss = 2.0 + 6.0 * math.exp(-3 * step / steps)
            values = {"loss": loss, "cross_entropy": loss, "grad_norm": 1.0 + step / steps, "skipped": 0.0}
            values |= {"learning_rate": 1e-3 * step / steps, "tokens_per_second": 5000.0, "step_seconds": 0.5}
            lines.append({"step": step} | values)
            if step % (10 * every) == 0:
                quality = {"validation_loss": loss + 0.1, "validation_perplexity": 90.0, "bits_per_byte": 1.5}
                lines += [{"step": step} | quality, {"step": step, "prompt": "Once ", "sample": f"{sample} {step}"}]
        return lines

    return make
