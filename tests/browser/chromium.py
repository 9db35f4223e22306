"""A real headless Chromium, driven by trio. Start at `Browser.open_page`.

It speaks Chromium's DevTools protocol over two pipes (`--remote-debugging-pipe`): JSON messages,
each ended by a NUL. So no port is open that a page under test could reach, no driver's release has
to fit the browser's, and a cancelled test leaves nothing behind. Starting takes about a second, so
one process serves all tests; each gets a browser context of its own, as a private window is.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
FLAGS: Final = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # it cannot start in a container or as root, and loads only our own pages
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",  # a container's is often too small
    "--no-first-run",
    "--no-default-browser-check",
    "--no-startup-window",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-features=Translate,MediaRouter,OptimizationHints",
    "--metrics-recording-only",
    "--mute-audio",
    # Pages of any *.test host come from this machine; no other name exists.
    "--host-resolver-rules=MAP *.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, "
    "EXCLUDE localhost",
)
# The pipes must be descriptors 3 and 4.
LAUNCH: Final = 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null'
CALL_TIMEOUT_S: Final = 60.0  # of one command; a busy machine may take seconds
WAIT_TIMEOUT_S: Final = 60.0  # until a condition holds in a page
POLL_S: Final = 0.02
STOP_TIMEOUT_S: Final = 10.0
READ_BYTES: Final = 65_536

Json = dict[str, Any]


class BrowserError(AssertionError):
    """The browser refused a command, or a script in the page raised."""


def find_chromium() -> str | None:
    """Path of an installed Chromium."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class MessageDecoder:
    """Bytes in, messages out. Outlives a test, because a test may end within a message."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive(self, data: bytes) -> Iterator[Json]:
        self._buffer += data
        *whole, rest = self._buffer.split(b"\0")
        self._buffer = bytearray(rest)
        for message in whole:
            yield json.loads(message)


@dataclass(frozen=True)
class Chromium:
    """A running browser process. commands, messages: our ends of its pipes."""

    process: subprocess.Popen[bytes]
    commands: int
    messages: int
    decoder: MessageDecoder = field(default_factory=MessageDecoder)
    # Never used twice: an answer that a cancelled test no longer awaits must not meet the next.
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))


@contextmanager
def open_chromium(program: str, folder: Path) -> Iterator[Chromium]:
    """Start Chromium with a fresh profile in `folder`; it is gone when the block ends."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", LAUNCH, "sh", program, *FLAGS, f"--user-data-dir={folder}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder)},
        start_new_session=True,  # so that all its processes can be ended at once
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Chromium(process, process.stdin.fileno(), process.stdout.fileno())
        finally:
            process.stdin.close()  # it ends when the pipe does
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@dataclass
class Page:
    """One tab.

    console: what the page wrote and what the browser complained of (errors, violations of its
    Content-Security-Policy), as "level: text". failures: exceptions that nobody caught. requests:
    every URL that was asked for, in order. bodies: what was sent with them, if anything.
    """

    browser: Browser
    session: str
    console: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    bodies: list[str] = field(default_factory=list)

    async def call(self, method: str, **params: Any) -> Json:
        """One command of the DevTools protocol to this tab; its result."""
        return await self.browser.call(method, self.session, **params)

    async def go(self, url: str) -> None:
        """Load `url`, and wait until that is done."""
        result = await self.call("Page.navigate", url=url)
        if "errorText" in result:
            raise BrowserError(f"{url}: {result['errorText']}")
        await self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, as JSON; a promise is awaited."""
        result = await self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
            allowUnsafeEvalBlockedByCSP=False,
        )
        if "exceptionDetails" in result:
            raise BrowserError(_exception_text(result["exceptionDetails"]))
        return result["result"].get("value")

    async def wait_for(self, expression: str, within_s: float = WAIT_TIMEOUT_S) -> Any:
        """Wait until the expression is true; its value."""
        value: Any = None
        with trio.move_on_after(within_s):
            while not value:
                with suppress(BrowserError):  # as while a page is being replaced
                    value = await self.evaluate(expression)
                if not value:
                    await trio.sleep(POLL_S)
        if not value:
            raise BrowserError(f"not within {within_s:.0f} s: {expression}; {self.console}")
        return value

    async def text(self, selector: str) -> str:
        """The text that an element shows."""
        found = f"document.querySelector({json.dumps(selector)})"
        await self.wait_for(f"{found} !== null")
        return str(await self.evaluate(f"{found}.innerText"))

    async def click(self, selector: str) -> None:
        """Click in the middle of an element, as a mouse does: it must be visible there."""
        found = f"document.querySelector({json.dumps(selector)})"
        x, y = await self.evaluate(
            f"(() => {{ const e = {found}; e.scrollIntoView({{block: 'center', behavior: "
            "'instant'}); const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    async def write(self, text: str) -> None:
        """Put text where the focus is, as a keyboard or a paste does."""
        await self.call("Input.insertText", text=text)

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a named key: Enter, Tab, Escape."""
        code = {"Enter": 13, "Tab": 9, "Escape": 27, "Space": 32}[key]
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 * shift}
        text = {"text": "\r"} if key == "Enter" else {}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    async def resize(self, width: int, height: int, scale: float = 1.0) -> None:
        """Give the window that size in CSS pixels."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    async def prefer(self, **features: str) -> None:
        """Set media features, as `prefers_color_scheme="dark"`."""
        listed = [{"name": name.replace("_", "-"), "value": v} for name, v in features.items()]
        await self.call("Emulation.setEmulatedMedia", features=listed)

    async def screenshot(self, path: Path, *, is_whole: bool = False) -> None:
        """Write what is seen, or the whole page, as PNG; for people, not for comparing."""
        result = await self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=is_whole
        )
        await trio.Path(path).write_bytes(base64.b64decode(result["data"]))

    def receive(self, method: str, params: Json) -> None:
        """Take an event of the browser."""
        match method:
            case "Runtime.consoleAPICalled":
                words = [str(a.get("value", a.get("description", ""))) for a in params["args"]]
                self.console.append(f"{params['type']}: {' '.join(words)}")
            case "Log.entryAdded":
                self.console.append(f"{params['entry']['level']}: {params['entry']['text']}")
            case "Runtime.exceptionThrown":
                self.failures.append(_exception_text(params["exceptionDetails"]))
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
                if "postData" in params["request"]:
                    self.bodies.append(params["request"]["postData"])


class Browser:
    """The browser as one test sees it: a private window."""

    def __init__(
        self, chromium: Chromium, commands: trio.abc.SendStream, messages: trio.abc.ReceiveStream
    ) -> None:
        self._chromium = chromium
        self._commands = commands
        self._messages = messages
        self._sending = trio.Lock()
        self._results: dict[int, Json | None] = {}
        self._arrived = trio.Condition()
        self._pages: dict[str, Page] = {}
        self.context = ""

    async def call(self, method: str, session: str = "", **params: Any) -> Json:
        """One command of the DevTools protocol; raises `BrowserError` if it is refused."""
        number = next(self._chromium.ids)
        message = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        self._results[number] = None
        try:
            with trio.fail_after(CALL_TIMEOUT_S):
                async with self._sending:
                    await self._commands.send_all(json.dumps(message).encode() + b"\0")
                async with self._arrived:
                    while (answer := self._results[number]) is None:
                        await self._arrived.wait()
        finally:
            del self._results[number]
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        result: Json = answer["result"]
        return result

    async def open_page(self, url: str = "about:blank") -> Page:
        """A new tab that shows `url`; it is recorded from the first byte on."""
        target = await self.call(
            "Target.createTarget", url="about:blank", browserContextId=self.context
        )
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        page = Page(self, attached["sessionId"])
        self._pages[page.session] = page
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.call(f"{domain}.enable")
        if url != "about:blank":
            await page.go(url)
        return page

    async def receive_messages(self) -> None:
        """Hand out what the browser says, until cancelled."""
        async for data in self._messages:
            for message in self._chromium.decoder.receive(data):
                if message.get("id") in self._results:
                    self._results[message["id"]] = message
                elif (page := self._pages.get(message.get("sessionId", ""))) is not None:
                    page.receive(message.get("method", ""), message.get("params", {}))
            async with self._arrived:
                self._arrived.notify_all()
        raise BrowserError("Chromium has ended")


@asynccontextmanager
async def open_browser(chromium: Chromium) -> AsyncIterator[Browser]:
    """A private window of `chromium`, closed with all its pages when the block ends."""
    async with (
        trio.lowlevel.FdStream(os.dup(chromium.commands)) as commands,
        trio.lowlevel.FdStream(os.dup(chromium.messages)) as messages,
        trio.open_nursery() as nursery,
    ):
        browser = Browser(chromium, commands, messages)
        nursery.start_soon(browser.receive_messages)
        made = await browser.call("Target.createBrowserContext")
        browser.context = made["browserContextId"]
        try:
            yield browser
        finally:
            with trio.CancelScope(deadline=trio.current_time() + STOP_TIMEOUT_S, shield=True):
                await browser.call("Target.disposeBrowserContext", browserContextId=browser.context)
            nursery.cancel_scope.cancel()


def _exception_text(details: Json) -> str:
    exception = details.get("exception", {})
    return str(exception.get("description") or exception.get("value") or details["text"])
