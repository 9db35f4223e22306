"""A network to break: a bootstrap peer, one that asks, lanes of twins. Start at `open_network`.

Starting a donor takes a second or two of a core, and a drill kills a hundred of them. So it runs in
several lanes beside each other: each has a model of its own, which only its own few donors have,
and while one lane waits for a new donor, another one is being broken.
"""

from __future__ import annotations

import itertools
import math
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import psutil
import trio

from benchmarks.drills.app import Question, ask, chat, whole
from benchmarks.drills.fake_peer import PROGRAM, ModelFile, write_model
from tokenplace.cli.processes import (
    LOOPBACK,
    PeerFailed,
    PeerGroup,
    PeerProcess,
    is_offering,
    open_peers,
)

KNOWN_WITHIN_S: Final = 30.0  # that the asking peer reaches a new donor which it is told to ask
POLL_S: Final = 0.02
STARTED_AT_ONCE: Final = 2  # more only make each other slower

TrialT = TypeVar("TrialT")
ResultT = TypeVar("ResultT")


@dataclass(eq=False)
class Donor:
    """One donor's process."""

    peer: PeerProcess
    peer_id: str
    is_killed: bool = False

    @property
    def pid(self) -> int:
        return self.peer.process.pid

    def kill(self) -> None:
        """SIGKILL, this instant."""
        self.is_killed = True
        self.peer.process.kill()

    def freeze(self) -> None:
        """SIGSTOP: to everybody else it just falls silent."""
        self.peer.process.send_signal(signal.SIGSTOP)

    async def has_queued(self) -> bool:
        """Does a request wait for its turn there?"""
        status = await self.peer.status()
        return status is not None and any(model["n_queued"] for model in status["models"])

    async def is_free(self) -> bool:
        """Does it work for nobody now, by its own word?"""
        status = await self.peer.status()
        return (
            status is not None
            and not status["exchanges"]["open"]
            and not any(model["n_running"] + model["n_queued"] for model in status["models"])
        )


@dataclass(eq=False)
class Lane:
    """A model, and its donors by peer id: nobody else has it."""

    network: Network
    model: ModelFile
    donors: dict[str, Donor] = field(default_factory=dict)

    async def fill(self, n_donors: int) -> None:
        """Have so many donors, which the asking peer knows and has asked once."""
        self._forget_dead()
        async with trio.open_nursery() as nursery:
            for _ in range(n_donors - len(self.donors)):
                nursery.start_soon(self._add)

    async def uncut(self, body: Mapping[str, Any], n_donors: int) -> Question:
        """What the answer is if nobody breaks anything; by then there are so many donors."""
        self._forget_dead()
        if not self.donors:
            await self.fill(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.fill, n_donors)
            question = await ask(self.network.api, body)
        assert question.is_answered, f"an answer that nobody broke: {question.problem}"
        return question

    async def clear(self) -> None:
        """Kill all donors, frozen ones too, and wait until they are gone."""
        for donor in self.donors.values():
            donor.kill()
            await donor.peer.process.wait()
        self.donors.clear()

    def chat(self, prompt: str, n_tokens: int, **more: Any) -> dict[str, Any]:
        """The body of a streamed chat with this lane's model."""
        return chat(self.model.called, prompt, n_tokens, **more)

    def _forget_dead(self) -> None:
        for peer_id, donor in list(self.donors.items()):
            if donor.is_killed:
                del self.donors[peer_id]

    async def _add(self) -> None:
        donor = await self.network.start_donor(self.model)
        await self.introduce(donor)
        self.donors[donor.peer_id] = donor

    async def introduce(self, donor: Donor) -> None:
        """Have it asked once: by itself a requester looks for new donors every few seconds only."""
        body = whole(self.chat("hello", 1, provider={"only": [donor.peer_id]}))
        with trio.move_on_after(KNOWN_WITHIN_S):
            while not (await ask(self.network.api, body)).is_answered:
                donor.peer.check()
                await trio.sleep(POLL_S)
            return
        raise PeerFailed(f"{donor.peer.name} could not be asked in {KNOWN_WITHIN_S:.0f} s.")


@dataclass(eq=False)
class Network:
    """What a drill breaks. Make one with `open_network`.

    donor_program, donor_flags: what a donor is, besides where it listens and whom it joins.
    """

    group: PeerGroup
    donor_program: Sequence[str]
    donor_flags: Sequence[str]
    bootstrap: str = ""
    api: str = ""
    asker: PeerProcess | None = None
    lanes: list[Lane] = field(default_factory=list)
    _starting: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(STARTED_AT_ONCE)
    )
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def start_donor(self, model: ModelFile) -> Donor:
        """Start one more; inside the call it may take requests by its end."""
        async with self._starting:
            peer = await self.group.start(
                f"donor-{next(self._numbers)}",
                *(*self.donor_flags, "--donate", str(model.path), "--bootstrap", self.bootstrap),
                *("--listen", LOOPBACK),
                program=self.donor_program,
            )
            status = await peer.wait(is_offering)
        return Donor(peer, str(status["peer_id"]))

    async def start_asker(self) -> PeerProcess:
        """Start the peer that asks, also once more in its old home."""
        self.asker, self.api = await self.group.start_asker("asker", self.bootstrap, 0)
        return self.asker

    async def attempts(self) -> list[dict[str, Any]]:
        """What became of asking donors lately, by the asking peer's own word."""
        assert self.asker is not None, "started by `open_network`"
        status = await self.asker.wait(lambda status: True)
        attempts = [attempt for request in status["requests"] for attempt in request["attempts"]]
        return [attempt for attempt in attempts if attempt["outcome"]]

    async def in_lanes(
        self,
        trials: Sequence[TrialT],
        attempt: Callable[[Lane, TrialT], Awaitable[ResultT]],
    ) -> list[ResultT]:
        """Do all trials, one in each lane at a time; their results in the trials' order."""
        left = iter(enumerate(trials))
        results: dict[int, ResultT] = {}

        async def work(lane: Lane) -> None:
            for number, trial in left:
                results[number] = await attempt(lane, trial)

        async with trio.open_nursery() as nursery:
            for lane in self.lanes:
                nursery.start_soon(work, lane)
        return [results[number] for number in range(len(trials))]


@asynccontextmanager
async def open_network(
    folder: Path,
    *donor_flags: str,
    n_lanes: int = 1,
    donor_program: Sequence[str] = PROGRAM,
) -> AsyncIterator[Network]:
    """A bootstrap peer, a peer that asks, and lanes without donors yet; all are gone when the block
    ends. donor_flags: as `fake_peer` takes them. Raises `PeerFailed`.
    """
    async with open_peers(folder) as group:
        network = Network(group, donor_program, donor_flags)
        network.bootstrap = await group.start_bootstrap()
        await network.start_asker()
        for number in range(n_lanes):
            model = write_model(folder / f"drill-{number}.gguf")
            network.lanes.append(Lane(network, model))
        yield network


async def wait_until(
    condition: Callable[[], Awaitable[bool]], within_s: float, poll_s: float = POLL_S
) -> float:
    """Seconds until it holds; infinite if that takes longer than `within_s`."""
    began = trio.current_time()
    with trio.move_on_after(within_s):
        while True:
            if await condition():
                return trio.current_time() - began
            await trio.sleep(poll_s)
    return math.inf


@dataclass(frozen=True, slots=True)
class Size:
    """How large a process is. memory_mb: resident."""

    descriptors: int
    memory_mb: float


def size_of(pid: int) -> Size:
    """How large it is now."""
    process = psutil.Process(pid)
    return Size(process.num_fds(), process.memory_info().rss / 1e6)


def prompt_of(dice: random.Random, n_tokens: int) -> str:
    """A prompt of about so many tokens of the deterministic engine, like no other."""
    words = f"{dice.getrandbits(64):016x} "
    return (words * (n_tokens * 4 // len(words) + 1))[: n_tokens * 4]
