"""One world: who is in it, what befalls it, and whether all answers are right. Start at
`run_world`.

A `Plan` says what a world is made of, and `draw_plan` draws one from a seed; drills write theirs
by hand.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Final

import trio
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.peer.id import ID

from benchmarks.simulation.checks import Asked, faults_of
from benchmarks.simulation.determinism import run_seeded
from benchmarks.simulation.donors import DonorSpec, Nature, SimDonor
from benchmarks.simulation.faults import Chaos, Fault
from benchmarks.simulation.liars import Lie, draw_lie
from benchmarks.simulation.lookup import SimKad
from benchmarks.simulation.network import Line, SimNetwork
from benchmarks.simulation.requesters import App, SimRequester, open_requester
from benchmarks.simulation.trace import Trace
from benchmarks.simulation.workload import Habits
from tokenplace.dht.messages import PeerAddrs
from tokenplace.engine.fake import Faults
from tokenplace.engine.fake_model import FakeModel
from tokenplace.errors import DonorBusy, DonorInternalError, WorkerCrashed
from tokenplace.peer.identity import Identity
from tokenplace.peer.wire import GENERATE_PROTOCOL

# After the last answer: longer than any deadline of an exchange that nobody waits for any more.
SETTLE_S: Final = 150.0
_SETTLE_LOOKS: Final = 30
# Directories are asked all the time; what is open for longer is left over.
_OPEN_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class RequesterSpec:
    """A requester as a world is made with it. n_apps: that ask side by side. clock_s: how far its
    clock is wrong."""

    n_apps: int
    n_requests: int
    line: Line = field(default_factory=Line)
    clock_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A world before it begins. models: each is told from the others by its words. lies: share of
    the answers of a donor that lies. chaos_s: pause between two faults, on average.
    """

    donors: tuple[tuple[DonorSpec, Line], ...]
    requesters: tuple[RequesterSpec, ...]
    models: tuple[FakeModel, ...]
    habits: Habits = field(default_factory=Habits)
    chaos_s: float = math.inf
    chaos: tuple[Fault, ...] = tuple(Fault)
    lies: float = 0.5


@dataclass(eq=False)
class Outcome:
    """What came of a world. faults: what is wrong, a line each; none is what there should be."""

    seed: int
    digest: str = ""
    virtual_s: float = 0.0
    asked: list[Asked] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def outcomes(self) -> Counter[str]:
        """How requests ended."""
        return Counter(asked.outcome for asked in self.asked)


def run_world(
    seed: int, plan: Plan | None = None, say: Callable[[str], None] | None = None
) -> Outcome:
    """Let a whole world happen. plan: drawn from the seed if there is none. say: gets each line of
    the trace. Raises what a defect in anybody's background task raises."""
    outcome = Outcome(seed)
    plan = plan or draw_plan(Random(f"{seed} plan"))
    run_seeded(seed, partial(_happen, outcome, plan, Trace(say)))
    return outcome


async def _happen(outcome: Outcome, plan: Plan, trace: Trace) -> None:
    async with open_world(outcome.seed, plan, trace) as world:
        async with trio.open_nursery() as nursery:
            chaos = trio.CancelScope()
            if math.isfinite(plan.chaos_s):
                nursery.start_soon(_within, chaos, world.chaos().run)
            await world.ask_all(outcome.asked.append)
            chaos.cancel()
        outcome.faults += [f for asked in outcome.asked for f in faults_of(asked, plan.models)]
        outcome.faults += await world.settle()
    outcome.digest, outcome.virtual_s = trace.digest, trio.current_time()


async def _within(scope: trio.CancelScope, run: Callable[[], object]) -> None:
    with scope:
        await run()  # type: ignore[misc]


# ---------------------------------------------------------------- a running world


@dataclass(eq=False)
class World:
    """Everybody, running. Make one with `open_world`."""

    network: SimNetwork
    kad: SimKad
    donors: list[SimDonor]
    requesters: list[SimRequester]
    dice: Random
    trace: Trace
    plan: Plan
    nursery: trio.Nursery

    def chaos(self) -> Chaos:
        """What befalls it."""
        return Chaos(
            self.network,
            self.donors,
            [requester.host for requester in self.requesters],
            Random(self.dice.random()),
            self.trace,
            self.plan.chaos_s,
            self.plan.chaos,
        )

    async def ask_all(self, on_end: Callable[[Asked], None]) -> None:
        """Let all apps ask all that they have to ask."""
        async with trio.open_nursery() as nursery:
            for app, spec in self._apps(on_end):
                nursery.start_soon(app.run, spec.n_requests)

    async def ask_until(self, time: float, on_end: Callable[[Asked], None]) -> None:
        """Let all apps ask for so long, and end what they have begun."""
        async with trio.open_nursery() as nursery:
            for app, _ in self._apps(on_end):
                nursery.start_soon(app.run_until, time)

    def _apps(self, on_end: Callable[[Asked], None]) -> Iterator[tuple[App, RequesterSpec]]:
        names = [*(model.name for model in self.plan.models), "auto"]
        for requester, spec in zip(self.requesters, self.plan.requesters, strict=True):
            for number in range(spec.n_apps):
                name, dice = f"{requester.name}.{number}", Random(self.dice.random())
                habits = self.plan.habits
                yield App(name, requester, dice, names, habits, self.trace, on_end), spec

    def add_donor(self, spec: DonorSpec, line: Line) -> SimDonor:
        """A donor that is there from now on, and announces itself."""
        number = len(self.donors)
        ip = (
            f"8.{number % 250 + 1}.{number // 250 + 1}.7"  # strangers, each in a network of its own
        )
        host = self.network.add_host(f"donor{number}", _identity(f"donor {number}"), ip, line)
        lies = Random(self.dice.random())

        def choose_lie() -> Lie | None:
            return draw_lie(lies) if lies.random() < self.plan.lies else None

        donor = SimDonor(host, spec, choose_lie)
        self.donors.append(donor)
        addrs = tuple(addr.partition("/p2p/")[0] for addr in host.addrs())
        self.kad.announce(PeerAddrs(host.peer_id, addrs))
        self.nursery.start_soon(donor.live)
        return donor

    async def settle(self) -> list[str]:
        """Wait until nothing is left of the requests, and say what is left in the end."""
        for _ in range(_SETTLE_LOOKS):
            if not self._leftovers():
                return []
            await trio.sleep(SETTLE_S / _SETTLE_LOOKS)
        return self._leftovers()

    def _leftovers(self) -> list[str]:
        return [*self._donors_leftovers(), *self._open_streams()]

    def _donors_leftovers(self) -> list[str]:
        found = []
        for donor in self.donors:
            process = donor.process
            if process is None:
                continue
            admission = process.admission
            counts = {
                "open": admission.n_open,
                "queued": admission.n_queued,
                "running": admission.n_running,
                "answering": process.donor.statistics.n_answering,
                "in its engine": process.engine.load.n_running + process.engine.load.n_queued,
            }
            found += [f"{donor.name}: {n} {what}" for what, n in counts.items() if n]
        return found

    def _open_streams(self) -> list[str]:
        before = trio.current_time() - _OPEN_S
        return [
            f"{host.name}: a stream of {stream.protocol} open"
            for host in self.network.hosts.values()
            for stream in host.open_streams()
            if stream.protocol == GENERATE_PROTOCOL or stream.opened_at < before
        ]


@asynccontextmanager
async def open_world(seed: int, plan: Plan, trace: Trace) -> AsyncIterator[World]:
    """Let a world run until the block exits."""
    dice = Random(f"{seed} world")
    network = SimNetwork(Random(f"{seed} network"), trace)
    kad = SimKad(Random(f"{seed} lookup"))
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        world = World(network, kad, [], [], dice, trace, plan, nursery)
        for donor_spec, line in plan.donors:
            world.add_donor(donor_spec, line)
        for number, spec in enumerate(plan.requesters):
            ip = f"9.{number // 200 + 1}.{number % 200 + 1}.9"
            name = f"asker{number}"
            host = network.add_host(name, _identity(f"asker {number}"), ip, spec.line)
            world.requesters.append(
                await stack.enter_async_context(
                    open_requester(host, kad, plan.models, Random(dice.random()), spec.clock_s)
                )
            )
        yield world
        await stack.aclose()
        nursery.cancel_scope.cancel()


def _identity(name: str) -> Identity:
    """Always the same for a name: peer ids decide between equals."""
    private_key = Ed25519PrivateKey.from_bytes(hashlib.sha256(name.encode()).digest())
    key_pair = KeyPair(private_key, private_key.get_public_key())
    peer_id = ID.from_pubkey(key_pair.public_key)
    return Identity(key_pair, peer_id.to_base58(), peer_id.to_bytes())


# ---------------------------------------------------------------- a drawn world

_MODELS: Final = (
    FakeModel(
        name="alpha",
        artifact=hashlib.sha256(b"alpha").hexdigest(),
        n_answer=(4, 32),
    ),
    FakeModel(
        name="beta",
        artifact=hashlib.sha256(b"beta").hexdigest(),
        words=("one ", "zwölf ", "三 ", "😀 ", "free ", "\n", "five "),
        n_answer=(4, 32),
    ),
)


def draw_plan(dice: Random) -> Plan:
    """Any world: a few donors of every nature, a few requesters, good and bad lines."""
    models = _MODELS[: dice.choice((1, 1, 2))]
    donors = tuple(
        (_draw_donor(dice, dice.choice(models)), _draw_line(dice))
        for _ in range(dice.randint(2, 6))
    )
    requesters = tuple(
        RequesterSpec(
            n_apps=dice.randint(1, 2),
            n_requests=dice.randint(4, 8),
            line=_draw_line(dice),
            clock_s=dice.choice((0.0, 0.0, dice.uniform(-200, 200))),
        )
        for _ in range(dice.randint(1, 4))
    )
    return Plan(
        donors,
        requesters,
        models,
        Habits(pause_s=dice.choice((0.2, 2.0, 8.0))),
        chaos_s=dice.choice((3.0, 6.0, 15.0)),
    )


def _draw_donor(dice: Random, model: FakeModel) -> DonorSpec:
    speed = dice.choice((0.1, 0.5, 1.0, 1.0, 3.0))
    model = replace(
        model,
        n_slots=dice.choice((1, 2, 4)),
        n_queued=dice.choice((0, 2, 64)),
        prefill_tps=1000.0 * speed,
        decode_tps=100.0 * speed,
        stream_cost=dice.choice((0.0, 0.5)),
    )
    nature = dice.choice((*[Nature.HONEST] * 8, *Nature))
    spec = DonorSpec(model, nature, clock_s=dice.choice((0.0, 0.0, dice.uniform(-200, 200))))
    match nature:
        case Nature.BOASTS:
            return replace(spec, boast=100.0)
        case Nature.ERRS:
            error = dice.choice((DonorInternalError, WorkerCrashed, DonorBusy))
            return replace(spec, faults=Faults(refusal=error))
        case Nature.STALLS:
            return replace(
                spec,
                faults=Faults(stall_after=dice.choice((0, 0, 3)), eta_factor=dice.choice((1, 50))),
            )
        case Nature.CRASHES:
            return replace(spec, faults=Faults(crash_after=dice.randrange(6)))
        case _:
            return spec


def _draw_line(dice: Random) -> Line:
    return Line(
        latency_s=dice.choice((0.001, 0.01, 0.05, 0.15)),
        jitter_s=dice.choice((0.0, 0.01, 0.1)),
        bytes_per_s=dice.choice((math.inf, 1e6, 32e3)),
        is_choppy=dice.random() < 0.3,
        window_bytes=dice.choice((256 << 10, 256 << 10, 700)),
    )
