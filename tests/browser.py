"""A headless Chromium driven through two pipes, with the standard library alone."""

import fcntl
import json
import os
import select
import shutil
import signal
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip


def found():
    """Path of a browser, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def spawn(command, reads, writes):
    """Start a program that reads from file 3 and writes to file 4; its process id."""
    high = [fcntl.fcntl(pipe, fcntl.F_DUPFD_CLOEXEC, 10) for pipe in (reads, writes)]  # so that 3 overwrites neither
    quiet = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
    actions = [quiet, *((os.POSIX_SPAWN_DUP2, pipe, place) for pipe, place in zip(high, (3, 4), strict=True))]
    process = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    for pipe in high:
        os.close(pipe)
    return process


class Browser:
    """One page of one browser. `errors` collects what its console and its scripts complain about."""

    def __init__(self, profile, patience=60):
        self._id, self._buffer, self._patience, self.errors = 0, b"", patience, []
        self._session = None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        command = [found(), *QUIET, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        self._process = spawn(command, theirs_in, theirs_out)
        os.close(theirs_in)
        os.close(theirs_out)
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def close(self):
        self._session = None
        try:
            self.ask("Browser.close")
        except RuntimeError:
            os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._in)
        os.close(self._out)

    def ask(self, method, **settings):
        """The result of one command of the DevTools protocol. RuntimeError when it fails or nothing answers."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": settings}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(method)
            if answer.get("id") == self._id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self, waiting_for):
        deadline = time.monotonic() + self._patience
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(self._in, 2**20) if ready else b""
            if not more:
                raise RuntimeError(f"the browser does not answer {waiting_for}")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, event, about):
        if event == "Runtime.exceptionThrown":
            self.errors.append(about["exceptionDetails"])
        elif event == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.errors.append(about["args"])
        elif event == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(about["entry"])

    def size(self, width, height=900, mobile=False):
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def open(self, address):
        """Load a page and wait until it and its scripts are there."""
        self.ask("Page.navigate", url=address)
        deadline = time.monotonic() + self._patience
        while self.run("document.readyState") != "complete" or self.run("location.href") != address:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{address} does not load")
            time.sleep(0.05)

    def run(self, script):
        """The value of a JavaScript expression, of a promise its result. RuntimeError where it throws."""
        done = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(str(done["exceptionDetails"]["exception"].get("description")))
        return done["result"].get("value")
