"""Peers as processes of their own, for the demo and whoever else wants a network on one machine.
Start at `PeerGroup`.

Every process is an ordinary `tokenplace up`, looked at through its control socket like any other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import trio

from tokenplace.cli.output import CommandFailed

LOOPBACK: Final = "/ip4/127.0.0.1/tcp/0"
START_TIMEOUT_S: Final = 60.0  # loading a small model on a busy machine of one core
STOP_TIMEOUT_S: Final = 4.0  # Ctrl-C is promised to end everything within 5 s
STATUS_TIMEOUT_S: Final = 2.0
POLL_S: Final = 0.05
UP: Final = ("-m", "tokenplace", "up")
INHERITED: Final = frozenset({"TOKENPLACE_MODELS_DIR", "TOKENPLACE_LOG", "TOKENPLACE_LOG_FORMAT"})

Status = dict[str, Any]


class PeerFailed(CommandFailed):
    """A peer's process ended or did not get ready; the text says which and why."""


@dataclass
class PeerProcess:
    """One peer's process. Its home holds its output, `output.log`."""

    name: str
    home: Path
    process: trio.Process

    @property
    def output(self) -> str:
        """Everything it printed."""
        return (self.home / "output.log").read_text("utf-8", "replace")

    @property
    def has_ended(self) -> bool:
        """Is the process gone?"""
        return self.process.poll() is not None

    async def status(self) -> Status | None:
        """The peer's own status; None while it does not answer."""
        # Without certificates, which take 60 ms to load and which nobody shows here.
        transport = httpx.AsyncHTTPTransport(verify=False, uds=str(self.home / "control.sock"))
        try:
            async with httpx.AsyncClient(transport=transport, timeout=STATUS_TIMEOUT_S) as client:
                answer: Status = (await client.get("http://peer/status")).json()
                return answer
        except (httpx.HTTPError, OSError, json.JSONDecodeError):
            return None

    async def wait(self, is_ready: Callable[[Status], object]) -> Status:
        """The first status that satisfies `is_ready`. Raises `PeerFailed`."""
        with trio.move_on_after(START_TIMEOUT_S):
            while True:
                self.check()
                status = await self.status()
                if status is not None and is_ready(status):
                    return status
                for model in (status or {}).get("models", ()):
                    if model["state"] == "failed":
                        raise PeerFailed(f"{self.name}: {model['reason']}")
                await trio.sleep(POLL_S)
        raise PeerFailed(f"{self.name} was not ready in {START_TIMEOUT_S:.0f} s:\n{self._tail()}")

    def check(self) -> None:
        """Raises `PeerFailed` if the process has ended."""
        if self.has_ended:
            raise PeerFailed(f"{self.name} ended:\n{self._tail()}")

    def _tail(self) -> str:
        return "\n".join(f"    {line}" for line in self.output.splitlines()[-5:])


@dataclass
class PeerGroup:
    """The peers started so far, each with a home below `folder`."""

    folder: Path
    peers: list[PeerProcess] = field(default_factory=list)

    async def start(
        self,
        name: str,
        *arguments: str,
        program: Sequence[str] = UP,
        prefix: Sequence[str] = (),
    ) -> PeerProcess:
        """Start `tokenplace up`; it ends with this process, however that ends. program: another
        one in its place that knows its flags. prefix: a command that runs what follows it.
        """
        home = self.folder / name
        home.mkdir(mode=0o700, exist_ok=True)
        command = [*prefix, sys.executable, *program, "--home", str(home), "--until-eof"]
        environment = {
            # No setting of the person's own peer may reach into these.
            key: value
            for key, value in os.environ.items()
            if not key.startswith("TOKENPLACE_") or key in INHERITED
        } | {"TOKENPLACE_CONFIG": os.devnull}
        with (home / "output.log").open("wb") as log:
            # Its own session: Ctrl-C is for the person's command, which then ends its peers in
            # order. The open stdin ends them even when that command itself is killed.
            process = await trio.lowlevel.open_process(
                [*command, *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        peer = PeerProcess(name, home, process)
        self.peers.append(peer)
        return peer

    async def start_bootstrap(self) -> str:
        """Start a peer that only helps others find each other; the multiaddr to join through."""
        peer = await self.start("bootstrap", "--serve", "--listen", LOOPBACK, "--no-api")
        addr: str = (await peer.wait(lambda s: s["addresses"]))["addresses"][0]
        return addr

    async def start_donor(
        self, name: str, model: str, bootstrap: str, n_threads: int, n_slots: int = 4
    ) -> PeerProcess:
        """Start a donor on loopback; it may still be loading its model.

        Several share this machine, so each computes fewer requests at once than it would alone.
        """
        serve = ("--donate", model, "--yes", "--listen", LOOPBACK, "--no-api")
        size = ("--threads", str(n_threads), "--parallel", str(n_slots))
        return await self.start(name, *serve, *size, "--bootstrap", bootstrap)

    async def start_asker(
        self, name: str, bootstrap: str, api_port: int
    ) -> tuple[PeerProcess, str]:
        """Start a peer that asks; with the base URL of its API."""
        peer = await self.start(name, "--bootstrap", bootstrap, "--api-port", str(api_port))
        status = await peer.wait(lambda s: s["api"])
        return peer, str(status["api"]["url"])

    async def stop(self) -> None:
        """End every process: kindly first, and after `STOP_TIMEOUT_S` without asking."""
        running = [peer.process for peer in self.peers if not peer.has_ended]
        for process in running:
            process.send_signal(signal.SIGTERM)
        with trio.move_on_after(STOP_TIMEOUT_S):
            for process in running:
                await process.wait()
        for process in running:
            if process.poll() is None:
                process.kill()
                await process.wait()


def is_offering(status: Status) -> bool:
    """Does this peer offer all the models it was told to donate?"""
    return bool(status["models"]) and all(m["state"] == "offered" for m in status["models"])


@asynccontextmanager
async def open_peers(folder: Path) -> AsyncIterator[PeerGroup]:
    """A group of peers that are all gone when the block ends."""
    group = PeerGroup(folder)
    try:
        yield group
    finally:
        with trio.CancelScope(shield=True):
            await group.stop()
