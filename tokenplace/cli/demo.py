"""`tokenplace demo`: a whole network of separate processes on loopback, asked one question. Start
at `Demo.run`.

Every process is an ordinary `tokenplace up`; the demo only starts them, asks over HTTP as any app
would, and ends them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import trio
import typer

from tokenplace.cli.models import ensure_model
from tokenplace.cli.output import fail, say
from tokenplace.errors import TokenplaceError
from tokenplace.models.catalogue import DEFAULT_MODEL
from tokenplace.settings import default_home, models_dir_of

LOOPBACK: Final = "/ip4/127.0.0.1/tcp/0"
START_TIMEOUT_S: Final = 60.0  # loading a small model on a busy machine of one core
STOP_TIMEOUT_S: Final = 4.0  # Ctrl-C is promised to end everything within 5 s
POLL_S: Final = 0.05
ANSWER_TIMEOUT_S: Final = 120.0
MAX_ANSWER_TOKENS: Final = 200


class DemoError(Exception):
    """The demo cannot go on; the text says why."""


@dataclass
class Child:
    """One peer's process, its home and its log."""

    name: str
    home: Path
    process: trio.Process

    @property
    def log_tail(self) -> str:
        """The last lines it printed."""
        lines = (self.home / "output.log").read_text("utf-8", "replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-5:])

    async def status(self) -> dict[str, Any] | None:
        """The peer's own status; None while it does not answer yet."""
        transport = httpx.AsyncHTTPTransport(uds=str(self.home / "control.sock"))
        try:
            async with httpx.AsyncClient(transport=transport, timeout=2.0) as client:
                answer: dict[str, Any] = (await client.get("http://peer/status")).json()
                return answer
        except (httpx.HTTPError, OSError, json.JSONDecodeError):
            return None


@dataclass
class Demo:
    """The demo's settings and its running processes."""

    prompt: str
    n_donors: int
    api_port: int
    n_threads: int
    once: bool
    folder: Path
    children: list[Child] = field(default_factory=list)
    is_answered: bool = False

    async def run(self) -> None:
        """Start the network, ask, print; stay up unless `once`. Raises `DemoError`."""
        say(f"starting 1 bootstrap peer, {self.n_donors} donors and 1 peer that asks ...")
        started = time.monotonic()
        bootstrap = await self._start("bootstrap", "--serve", "--listen", LOOPBACK, "--no-api")
        addr = (await self._wait(bootstrap, lambda s: s["addresses"]))["addresses"][0]
        threads = str(max(1, self.n_threads // self.n_donors))
        donate = ("--donate", DEFAULT_MODEL.name, "--yes", "--listen", LOOPBACK, "--no-api")
        donors = [
            await self._start(f"donor-{number}", *donate, "--threads", threads, "--bootstrap", addr)
            for number in range(1, self.n_donors + 1)
        ]
        asker = await self._start("asker", "--bootstrap", addr, "--api-port", str(self.api_port))
        api = str((await self._wait(asker, lambda s: s["api"]))["api"]["url"])
        for donor in donors:
            await self._wait(donor, lambda s: any(m["state"] == "offered" for m in s["models"]))
            say(f"  {donor.name} donates {DEFAULT_MODEL.name} ({threads} threads)")
        await self._wait(asker, lambda s: len(s["donors"]) == self.n_donors)
        say(f"network ready after {time.monotonic() - started:.1f} s\n")
        await self._ask(api, donors)
        self.is_answered = True
        if not self.once:
            _say_what_next(api, asker.home)
            await self._watch()

    async def _start(self, name: str, *arguments: str) -> Child:
        home = self.folder / name
        home.mkdir(mode=0o700)
        command = [sys.executable, "-m", "tokenplace", "up", "--home", str(home), "--until-eof"]
        environment = {
            # No setting of the person's own peer may reach into the demo.
            key: value
            for key, value in os.environ.items()
            if not key.startswith("TOKENPLACE_") or key == "TOKENPLACE_MODELS_DIR"
        } | {"TOKENPLACE_CONFIG": os.devnull}
        with (home / "output.log").open("wb") as log:
            # Its own session: Ctrl-C is for the demo, which then ends its children in order. The
            # open stdin ends them even when the demo itself is killed.
            process = await trio.lowlevel.open_process(
                [*command, *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        child = Child(name, home, process)
        self.children.append(child)
        return child

    async def _wait(self, child: Child, is_ready: Any) -> dict[str, Any]:
        with trio.move_on_after(START_TIMEOUT_S):
            while True:
                for other in self.children:
                    if other.process.poll() is not None:
                        raise DemoError(f"{other.name} ended:\n{other.log_tail}")
                status = await child.status()
                if status is not None and is_ready(status):
                    return status
                for model in (status or {}).get("models", ()):
                    if model["state"] == "failed":
                        raise DemoError(f"{child.name}: {model['reason']}")
                await trio.sleep(POLL_S)
        raise DemoError(
            f"{child.name} was not ready within {START_TIMEOUT_S:.0f} s:\n{child.log_tail}"
        )

    async def _ask(self, api: str, donors: list[Child]) -> None:
        """Ask as any app would, print the answer as it streams, then who gave it."""
        say(f"> {self.prompt}\n")
        body = {
            "model": DEFAULT_MODEL.name,
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": MAX_ANSWER_TOKENS,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        answer = _Answer()
        async with (
            httpx.AsyncClient(timeout=ANSWER_TIMEOUT_S) as client,
            client.stream("POST", f"{api}/chat/completions", json=body) as response,
        ):
            if response.status_code != 200:
                problem = json.loads(await response.aread())["error"]["message"]
                raise DemoError(f"the API answered {response.status_code}: {problem}")
            donor_id = response.headers.get("x-tokenplace-accepted-by", "")
            async for line in response.aiter_lines():
                answer.take(line)
        print(flush=True)
        if not answer.is_done or answer.first_s is None:
            raise DemoError(answer.problem or "the answer ended before it was whole")
        names = [d.name for d in donors if ((await d.status()) or {}).get("peer_id") == donor_id]
        if not names:
            raise DemoError(
                f"the answer did not come from one of the donors, but from {donor_id!r}"
            )
        say(
            f"\nanswered by {names[0]} ({donor_id}), found in the DHT: first token after "
            f"{answer.first_s * 1000:.0f} ms, {answer.n_tokens} tokens at "
            f"{answer.speed_tps:.0f} tokens/s"
        )

    async def _watch(self) -> None:
        while True:
            for child in self.children:
                if child.process.poll() is not None:
                    raise DemoError(f"{child.name} ended:\n{child.log_tail}")
            await trio.sleep(1)

    async def stop(self) -> None:
        """End every process: kindly first, and after `STOP_TIMEOUT_S` without asking."""
        for child in self.children:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        with trio.move_on_after(STOP_TIMEOUT_S):
            for child in self.children:
                await child.process.wait()
        for child in self.children:
            if child.process.poll() is None:
                child.process.kill()
                await child.process.wait()


@dataclass
class _Answer:
    """A streamed answer as it comes in; prints what is new."""

    started: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    n_tokens: int = 0
    is_done: bool = False
    problem: str = ""
    speed_tps: float = 0.0

    def take(self, line: str) -> None:
        if not line.startswith("data: "):
            return
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            self.is_done = True
            return
        event = json.loads(data)
        if "error" in event:
            self.problem = event["error"]["message"]
            return
        for choice in event["choices"]:
            if text := choice["delta"].get("content"):
                self.first_s = self.first_s or time.monotonic() - self.started
                print(text, end="", flush=True)
        if usage := event.get("usage"):
            self.n_tokens = usage["completion_tokens"]
            decode_s = time.monotonic() - self.started - (self.first_s or 0.0)
            self.speed_tps = (self.n_tokens - 1) / decode_s if decode_s > 0 else 0.0


def _say_what_next(api: str, home: Path) -> None:
    say(
        f"""
The network stays up. In another terminal:

  export OPENAI_BASE_URL={api}
  export OPENAI_API_KEY=anything

  curl {api}/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{DEFAULT_MODEL.name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'

  {sys.argv[0]} peer status --home {home}

Ctrl-C ends it."""
    )


@asynccontextmanager
async def _open_demo(demo: Demo) -> AsyncIterator[Demo]:
    try:
        yield demo
    finally:
        with trio.CancelScope(shield=True):
            await demo.stop()


async def _run_until_signal(demo: Demo) -> None:
    """Run the demo until it ends or a signal says so; a signal before the answer is a failure."""
    async with trio.open_nursery() as nursery:

        async def watch_signals() -> None:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    say("\nstopping ...")
                    nursery.cancel_scope.cancel()

        nursery.start_soon(watch_signals)
        async with _open_demo(demo):
            await demo.run()
        nursery.cancel_scope.cancel()


def run_demo(
    *, prompt: str, n_donors: int, api_port: int, n_threads: int | None, once: bool
) -> None:
    """Run the demo in the foreground; exit status 0 only if the answer came through the network."""
    home = default_home()
    ensure_model(home, models_dir_of(home), DEFAULT_MODEL.name, may_fetch=True)
    with tempfile.TemporaryDirectory(prefix="tokenplace-demo-") as folder:
        threads = n_threads or os.cpu_count() or 1
        demo = Demo(prompt, n_donors, api_port, threads, once, Path(folder))
        try:
            trio.run(_run_until_signal, demo)
        except* DemoError as group:
            fail(str(group.exceptions[0]))
        except* httpx.HTTPError as group:
            fail(f"the local API broke off: {type(group.exceptions[0]).__name__}")
        except* TokenplaceError as group:
            fail(str(group.exceptions[0]))
    raise typer.Exit(
        0 if demo.is_answered else 130
    )  # 130: ended by Ctrl-C before there was an answer
