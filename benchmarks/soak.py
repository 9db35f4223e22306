"""Whether a serving peer is after thousands of connections, streams and answers what it was before.

`python -m benchmarks.soak [--scale SHARE] [--json FILE]`. Exit status 1 if not. Start at `soak`.

The peer runs in a process of its own (`soak_peer`); the clients are here. Each phase has ten
rounds; after each, once the peer is idle again, its tasks, descriptors, streams and memory are
taken, and the last round is compared with the first. Lasting connections stay open while it is
looked at: what a stream leaves in its connection would go with it. A first round that is not
counted fills what is filled once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import trio
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.report import parse_arguments
from benchmarks.soak_peer import ANSWER, ARTIFACT, ECHO, NETWORK, Address, State
from tokenplace.generation import GenerateRequest, SamplingParams, TextInput, Tokens
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.requester import RemoteDonor, SealTarget
from tokenplace.peer.streams import PeerStream, receive_exactly
from tokenplace.peer.wire import GENERATE_PROTOCOL
from tokenplace.sealing.suites import AEAD_ID, KDF_ID, KEM_ID, PublicKey

ROUNDS: Final = 10
N_CLIENTS: Final = 4  # side by side; a disconnect takes 0.2 s of sleeps in the library
CONNECTIONS: Final = 1000
STREAMS_AT_ONCE: Final = 200  # 50 on each connection; one takes MAX_INBOUND_STREAMS, 128
EXCHANGES: Final = 2000
SETTLE_TIMEOUT_S: Final = 15.0  # a host's goodbye is bounded by 3 s, an unanswered stream by 10 s
IMPATIENT_S: Final = 2.0  # for rounds that no verdict hangs on: else a leak would take minutes
SETTLE_POLL_S: Final = 0.1
SETTLED_POLLS: Final = 10  # equal ones in a row, where there is nothing to compare with
ROUND_TIMEOUT_S: Final = 120.0
END_TIMEOUT_S: Final = 10.0
EXCHANGES_AT_ONCE: Final = 8  # of the 16 that one address may have running

REQUEST: Final = GenerateRequest(
    model="soak",
    input=TextInput("count"),
    sampling=SamplingParams(),
    seed=bytes(8),
    cache_scope=bytes(16),
    as_of="2026-01-01",
    artifact=ARTIFACT,
)

# Equal but for a keepalive or a goodbye that happens to be under way.
TASKS_SLACK: Final = 2
DESCRIPTORS_SLACK: Final = 1
# 4 MB: 2 KB for each exchange. The allocator wavers by 0.3 MB, and 2 MB stay after the streams.
MEMORY_SLACK: Final = 0.05


class Peer:
    """The measured process. Make one with `open_peer`."""

    def __init__(self, process: trio.Process, address: Address) -> None:
        self.address = address
        self._process = process

    async def state(self) -> State:
        """What it is like now."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(b"\n")
        return State(**await read_json(self._process))

    async def settled(
        self, n_connections: int, first: State | None, timeout_s: float = SETTLE_TIMEOUT_S
    ) -> State:
        """What it is like once nothing runs: as it was at `first`, or else not changing.

        What is left after `timeout_s` is not going to leave.
        """
        states: list[State] = []
        deadline = trio.current_time() + timeout_s
        while True:
            states.append(await self.state())
            if _is_settled(states, n_connections, first) or trio.current_time() >= deadline:
                return states[-1]
            await trio.sleep(SETTLE_POLL_S)


def _is_settled(states: list[State], n_connections: int, first: State | None) -> bool:
    now = states[-1]
    if now.exchanges or now.connections != n_connections:
        return False
    if first is not None:
        return all(n <= m for n, m in zip(_counts(now), _counts(first), strict=True))
    recent = [_counts(state) for state in states[-SETTLED_POLLS:]]
    return len(recent) == SETTLED_POLLS and len(set(recent)) == 1


def _counts(state: State) -> tuple[int, int, int]:
    return state.tasks, state.descriptors, state.streams


async def read_json(process: trio.Process) -> Any:
    """The next line that the process prints; it prints one at a time."""
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        data = await process.stdout.receive_some()
        assert data, "the measured peer ended"
        line += data
    return json.loads(line)


@asynccontextmanager
async def open_peer() -> AsyncIterator[Peer]:
    """Start the measured peer; it ends with the block, or with this process."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "benchmarks.soak_peer"],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    try:
        yield Peer(process, Address(**await read_json(process)))
    finally:
        with trio.move_on_after(END_TIMEOUT_S, shield=True):
            await process.stdin.aclose()
            await process.wait()
        process.kill()


# ---------------------------------------------------------------- the clients


class _Gathering:
    """Lets nobody through before all `n` have come."""

    def __init__(self, n: int) -> None:
        self._missing = n
        self._all_here = trio.Event()

    async def wait(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._all_here.set()
        await self._all_here.wait()


async def _side_by_side(job: Callable[[int], Awaitable[None]], n: int, at_once: int) -> None:
    """Do `job(0)` to `job(n - 1)`, `at_once` at any time."""
    numbers = iter(range(n))

    async def work() -> None:
        for number in numbers:
            await job(number)

    async with trio.open_nursery() as nursery:
        for _ in range(min(n, at_once)):
            nursery.start_soon(work)


async def _echo(peer: Peer, host: PeerHost, number: int, gathering: _Gathering) -> None:
    """One stream and one answer on it; the stream stays open until all are."""
    stream = await host.open_stream(peer.address.peer_id, ECHO, peer.address.addrs)
    await gathering.wait()
    said = number.to_bytes(4, "big")
    await stream.send_all(said)
    heard = await receive_exactly(stream, len(said))
    assert heard == said, "an echo of something else"
    await stream.aclose()


async def connect_often(peer: Peer, hosts: Sequence[PeerHost], n: int) -> None:
    """As strangers: each connects, gets one answer on one stream, and disconnects."""

    async def connect(number: int) -> None:
        async with open_host(throwaway_identity()) as host:
            await _echo(peer, host, number, _Gathering(1))

    await _side_by_side(connect, n, N_CLIENTS)


async def open_many_streams(peer: Peer, hosts: Sequence[PeerHost], n: int) -> None:
    """So many streams, all open before the first is used and closed."""
    gathering = _Gathering(n)

    async def hold(number: int) -> None:
        await _echo(peer, hosts[number % len(hosts)], number, gathering)

    await _side_by_side(hold, n, at_once=n)


async def exchange_often(peer: Peer, hosts: Sequence[PeerHost], n: int) -> None:
    """Sealed requests, each on a stream of its own, and their answers."""
    target = _target(await peer.state())

    async def exchange(number: int) -> None:
        remote = _remote_donor(peer, hosts[number % len(hosts)], target)
        async with remote.generate(REQUEST) as events:
            tokens = [event async for event in events if isinstance(event, Tokens)]
        words = [piece for event in tokens for piece in event.pieces]
        assert b" ".join(words) == ANSWER, "an answer to something else"

    await _side_by_side(exchange, n, EXCHANGES_AT_ONCE)


def _target(state: State) -> SealTarget:
    key = PublicKey(state.key_id, KEM_ID, KDF_ID, AEAD_ID, bytes.fromhex(state.public))
    return SealTarget(key, bytes.fromhex(state.epoch))


def _remote_donor(peer: Peer, host: PeerHost, target: SealTarget) -> RemoteDonor:
    async def open_stream() -> PeerStream:
        return await host.open_stream(peer.address.peer_id, GENERATE_PROTOCOL, peer.address.addrs)

    async def never_renew(keys: bytes | None, live: bytes | None) -> SealTarget | None:
        return None  # a round is shorter than the life of an epoch

    return RemoteDonor(
        peer_id=peer.address.peer_id,
        donor_id=bytes.fromhex(peer.address.donor_id),
        open_stream=open_stream,
        target=target,
        network=NETWORK,
        renew=never_renew,
    )


# ---------------------------------------------------------------- the phases


@dataclass(frozen=True, slots=True)
class Phase:
    """One kind of load: in each round `run` does it `n_in_round` times over the lasting hosts."""

    name: str
    n_in_round: int
    n_lasting: int
    run: Callable[[Peer, Sequence[PeerHost], int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Course:
    """What became of the peer in one phase.

    done: how often its load was run by the time of each state. took_s: in all.
    """

    name: str
    done: list[int]
    states: list[State]
    took_s: float

    def faults(self) -> list[str]:
        """What is not as it was after the first round."""
        first, last = self.states[0], self.states[-1]
        faults = []
        for what, slack in (
            ("tasks", TASKS_SLACK),
            ("descriptors", DESCRIPTORS_SLACK),
            ("streams", 0),
            ("exchanges", 0),
            ("connections", 0),
            ("memory_mb", MEMORY_SLACK * first.memory_mb),
        ):
            grown = getattr(last, what) - getattr(first, what)
            if grown > slack:
                faults.append(f"{self.name}: {what} +{grown:.3g}, more than {slack:.3g}")
        return faults


def phases(scale: float) -> list[Phase]:
    """All phases, with this share of their numbers.

    The first leaves no connection open, so that the peer's end can be compared with its beginning.
    """

    def in_round(n: float) -> int:
        return max(1, round(n * scale))

    return [
        Phase("connections", in_round(CONNECTIONS / ROUNDS), 0, connect_often),
        Phase("streams at once", in_round(STREAMS_AT_ONCE), N_CLIENTS, open_many_streams),
        Phase("exchanges", in_round(EXCHANGES / ROUNDS), N_CLIENTS, exchange_often),
    ]


async def soak(scale: float) -> list[Course]:
    """Run all phases, one after the other, against one peer; then compare it with the beginning."""
    async with open_peer() as peer:
        courses = [await run_phase(peer, phase) for phase in phases(scale)]
        first = courses[0].states[0]
        last = await peer.settled(0, first)
        took_s = sum(course.took_s for course in courses)
        done = [courses[0].done[0], sum(course.done[-1] for course in courses)]
        return [*courses, Course("all of these", done, [first, last], took_s)]


async def run_phase(peer: Peer, phase: Phase) -> Course:
    """One round that is not counted, then `ROUNDS`."""
    began = trio.current_time()
    states: list[State] = []
    async with AsyncExitStack() as stack:
        hosts = []
        for _ in range(phase.n_lasting):
            host = await stack.enter_async_context(open_host(throwaway_identity()))
            await host.connect(peer.address.peer_id, peer.address.addrs)
            hosts.append(host)
        for number in range(1 + ROUNDS):
            with trio.fail_after(ROUND_TIMEOUT_S):
                await phase.run(peer, hosts, phase.n_in_round)
            if number:
                first = states[0] if states else None
                timeout_s = SETTLE_TIMEOUT_S if number in (1, ROUNDS) else IMPATIENT_S
                states.append(await peer.settled(len(hosts), first, timeout_s))
    done = [number * phase.n_in_round for number in range(1, 1 + ROUNDS)]
    return Course(phase.name, done, states, trio.current_time() - began)


# ---------------------------------------------------------------- the report


def print_courses(courses: Sequence[Course]) -> None:
    """A row for each round, and the verdict of each phase."""
    title = "a serving peer, idle, after each tenth"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for column in ("phase", "done", "tasks", "descriptors", "streams", "MB", "flat"):
        table.add_column(column, justify="left" if column == "phase" else "right", no_wrap=True)
    for course in courses:
        verdict = "NO" if course.faults() else "yes"
        for done, state in zip(course.done, course.states, strict=True):
            is_first, is_last = state is course.states[0], state is course.states[-1]
            table.add_row(
                f"{course.name} ({course.took_s:.0f} s)" if is_first else "",
                str(done),
                str(state.tasks),
                str(state.descriptors),
                str(state.streams),
                f"{state.memory_mb:.1f}",
                verdict if is_last else "",
            )
        table.add_section()
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for fault in (fault for course in courses for fault in course.faults()):
        console.print(fault)


def main() -> None:
    """Soak, report, and exit with 1 if the peer has grown."""
    arguments = parse_arguments(__doc__ or "", has_scale=True)
    courses = trio.run(soak, arguments.scale)
    print_courses(courses)
    if arguments.json is not None:
        written = json.dumps([asdict(course) for course in courses], indent=2)
        arguments.json.write_text(written + "\n", "utf-8")
    if any(course.faults() for course in courses):
        sys.exit(1)


if __name__ == "__main__":
    main()
