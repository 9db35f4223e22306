"""A lab, as a test or a drill sees it. Start at `open_lab`; `why_not` says whether there can be one
here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import trio

from benchmarks.lab.namespaces import TUN_FILE, entering
from benchmarks.lab.router import MAX_HOSTS, Rule, Traffic, address

ROOT: Final = Path(__file__).resolve().parents[2]
CLOSE_TIMEOUT_S: Final = 5.0
MAX_LINE_BYTES: Final = 64 << 10


class LabFailed(Exception):
    """The lab's own process could not do what it is for."""


@dataclass
class Lab:
    """Hosts 0 to `n_hosts` - 1 and the links between them. Make one with `open_lab`."""

    n_hosts: int
    _carrier: trio.Process
    _net_fds: Sequence[int]
    _lines: _Lines
    _rules: dict[tuple[int, int], Rule] = field(default_factory=dict)
    _processes: list[trio.Process] = field(default_factory=list)
    _ordering: trio.Lock = field(default_factory=trio.Lock)

    def ip(self, host: int) -> str:
        """The host's IPv4 address, which only the lab's hosts can reach."""
        return address(host)

    def command(self, host: int, command: Sequence[str]) -> list[str]:
        """The command that runs `command` on this host, under the same process id."""
        return [*entering(self._carrier.pid, self._net_fds[host]), *command]

    async def popen(self, host: int, command: Sequence[str], **options: Any) -> trio.Process:
        """Start a process on this host; it ends with the lab. options: see `subprocess.Popen`."""
        process = await trio.lowlevel.open_process(self.command(host, command), **options)
        self._processes.append(process)
        return process

    # ------------------------------------------------------------ links

    async def link(self, a: int, b: int, *, is_both_ways: bool = True, **changes: Any) -> None:
        """Change the link from `a` to `b`, and back. changes: fields of `Rule`."""
        pairs = [(a, b), (b, a)] if is_both_ways else [(a, b)]
        await self._change(pairs, **changes)

    async def links(self, **changes: Any) -> None:
        """Change all links alike."""
        await self._change(_pairs(range(self.n_hosts), range(self.n_hosts)), **changes)

    async def calm(self) -> None:
        """Let all links do nothing to packets again."""
        await self.links(**dataclasses.asdict(Rule()))

    async def partition(self, *groups: Iterable[int], is_up: bool = False) -> None:
        """Cut all links between these groups of hosts at the same moment, or with `is_up` mend
        them; those inside a group stay as they are. Packets vanish: nobody is told."""
        sets = [set(group) for group in groups]
        pairs = [
            pair
            for one in sets
            for other in sets
            if one is not other
            for pair in _pairs(one, other)
        ]
        await self._change(pairs, is_up=is_up)

    async def isolate(self, host: int, *, is_up: bool = False) -> None:
        """Cut this host off from all others, or with `is_up` let it be with them again."""
        await self.partition({host}, set(range(self.n_hosts)) - {host}, is_up=is_up)

    async def flap(self, host: int, seconds: float) -> None:
        """Cut this host off for so long."""
        await self.isolate(host)
        try:
            await trio.sleep(seconds)
        finally:
            with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await self.isolate(host, is_up=True)

    async def traffic(self) -> Traffic:
        """What was carried so far. Raises `LabFailed`, as all that changes links does."""
        return await self._change([])

    async def _change(self, pairs: Iterable[tuple[int, int]], **changes: Any) -> Traffic:
        links = []
        for pair in pairs:
            rule = dataclasses.replace(self._rules.get(pair, Rule()), **changes)
            self._rules[pair] = rule
            links.append((*pair, dataclasses.asdict(rule)))
        assert self._carrier.stdin is not None, "opened with a pipe"
        order = json.dumps({"links": links}).encode() + b"\n"
        # Shielded: an answer that nobody took would be taken for the next one's.
        with trio.CancelScope(shield=True):
            async with self._ordering:
                try:
                    await self._carrier.stdin.send_all(order)
                except trio.BrokenResourceError:
                    raise LabFailed("its process ended") from None
                traffic = Traffic(**await self._lines.receive())
        return traffic


@asynccontextmanager
async def open_lab(n_hosts: int, seed: int = 0) -> AsyncIterator[Lab]:
    """So many hosts, all joined by links that do nothing to packets. When the block ends, so do
    all processes on them.

    Raises `LabFailed` saying why there can be none here.
    """
    assert 0 < n_hosts <= MAX_HOSTS, "each has an address"
    carrier = await trio.lowlevel.open_process(
        _carrier_command(n_hosts, seed),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,  # Ctrl-C is for whoever uses the lab, who then ends it in order
    )
    assert carrier.stdout is not None, "opened with a pipe"
    lines = _Lines(carrier.stdout)
    lab: Lab | None = None
    try:
        lab = Lab(n_hosts, carrier, _ready(await lines.receive()), lines)
        yield lab
    finally:
        with trio.CancelScope(shield=True):
            await _end(carrier, lab._processes if lab is not None else [])


async def _end(carrier: trio.Process, processes: Iterable[trio.Process]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
    for process in processes:
        await process.wait()
    assert carrier.stdin is not None, "opened with a pipe"
    await carrier.stdin.aclose()
    with trio.move_on_after(CLOSE_TIMEOUT_S):
        await carrier.wait()
    if carrier.poll() is None:
        carrier.kill()
        await carrier.wait()


@lru_cache
def why_not() -> str:
    """Why there can be no lab here; empty if there can. Found out by making one, once."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if shutil.which("nsenter") is None:
        return "there is no nsenter: install util-linux"
    if not os.access(TUN_FILE, os.R_OK | os.W_OK):
        return f"{TUN_FILE} cannot be opened"
    with subprocess.Popen(
        _carrier_command(1, 0), stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as carrier:
        assert carrier.stdout is not None, "opened with a pipe"
        try:
            (net_fd,) = _ready(json.loads(carrier.stdout.readline() or b"{}"))
            command = [*entering(carrier.pid, net_fd), "true"]
        except (LabFailed, OSError) as error:
            return f"no network namespace can be made: {error}"
        entered = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        return entered.stderr.strip() if entered.returncode else ""


def _carrier_command(n_hosts: int, seed: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.lab.carrier", str(n_hosts), str(seed)]


def _ready(first: dict[str, Any]) -> list[int]:
    """What the carrier's first line says. Raises `LabFailed`."""
    if "net_fds" not in first:
        raise LabFailed(first.get("error", "its process ended"))
    net_fds: list[int] = first["net_fds"]
    return net_fds


def _pairs(some: Iterable[int], others: Iterable[int]) -> Iterator[tuple[int, int]]:
    others = list(others)
    return ((a, b) for a in some for b in others if a != b)


class _Lines:
    """Lines of JSON out of a pipe."""

    def __init__(self, pipe: trio.abc.ReceiveStream) -> None:
        self._pipe = pipe
        self._rest = b""

    async def receive(self) -> dict[str, Any]:
        """The next line. Raises `LabFailed` if none will come."""
        while b"\n" not in self._rest:
            data = await self._pipe.receive_some()
            if not data or len(self._rest) > MAX_LINE_BYTES:
                raise LabFailed("its process ended")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer
