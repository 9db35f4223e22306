"""Real peers in processes of their own, for tests that are not async themselves (the OpenAI SDK's
users are not).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil
import trio

from tokenplace.cli.processes import PeerGroup, PeerProcess, Status, is_offering, open_peers

ResultT = TypeVar("ResultT")
MODEL = "smollm2-135m-instruct"
WAIT_S = 60.0


class Network:
    """One bootstrap peer, some donors, one peer that asks; driven from the test's own thread."""

    def __init__(self, group: PeerGroup, token: trio.lowlevel.TrioToken) -> None:
        self.group = group
        self._token = token
        self.bootstrap = ""
        self.api = ""
        self.donors: list[PeerProcess] = []
        self.asker: PeerProcess | None = None

    @property
    def api_port(self) -> int:
        return int(self.api.split(":")[2].split("/")[0])

    def run(self, work: Callable[..., Awaitable[ResultT]], *args: object) -> ResultT:
        return trio.from_thread.run(work, *args, trio_token=self._token)

    def status(self, peer: PeerProcess) -> Status:
        status = self.run(peer.status)
        assert status is not None, f"{peer.name} does not answer"
        return status

    def donor_of(self, peer_id: str) -> PeerProcess:
        return next(d for d in self.donors if self.status(d)["peer_id"] == peer_id)

    def start(self, n_donors: int) -> None:
        self.bootstrap = self.run(self.group.start_bootstrap)
        for _ in range(n_donors):
            self.add_donor()
        self.asker, self.api = self.run(self.group.start_asker, "asker", self.bootstrap, 0)
        self.wait_ready()

    def add_donor(self) -> PeerProcess:
        name = f"donor-{len(self.group.peers)}"
        donor = self.run(self.group.start_donor, name, MODEL, self.bootstrap, 1)
        self.donors.append(donor)
        return donor

    def wait_ready(self) -> None:
        for donor in self.donors:
            self.run(donor.wait, is_offering)
        assert self.asker is not None
        ids = {self.status(d)["peer_id"] for d in self.donors}
        self.run(self.asker.wait, lambda s: ids <= {d["peer_id"] for d in s["donors"]})

    def kill(self, donor: PeerProcess) -> None:
        """SIGKILL: the donor gets no chance to say anything."""
        donor.process.kill()
        self.donors.remove(donor)


@contextmanager
def open_network(folder: Path, n_donors: int) -> Iterator[Network]:
    """A network in a trio thread of its own; all its processes are gone when the block ends."""
    ready, leave = threading.Event(), trio.Event()
    made: list[Network] = []

    async def hold() -> None:
        async with open_peers(folder) as group:
            made.append(Network(group, trio.lowlevel.current_trio_token()))
            ready.set()
            await leave.wait()

    thread = threading.Thread(target=trio.run, args=(hold,))
    thread.start()
    ready.wait()
    network = made[0]
    try:
        network.start(n_donors)
        yield network
    finally:
        trio.from_thread.run_sync(leave.set, trio_token=network._token)
        thread.join()


def wait_for(condition: Callable[[], object], what: str, within_s: float = WAIT_S) -> None:
    """Wait for a condition, however long a busy machine takes."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {within_s:.0f} s"
        time.sleep(0.02)


def workers_of(peer: PeerProcess) -> list[psutil.Process]:
    """The processes that a donor runs its models in."""
    return psutil.Process(peer.process.pid).children(recursive=True)


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Stop processes without ending them: to everybody else they just fall silent."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGCONT)
