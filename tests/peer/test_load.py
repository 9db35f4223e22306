"""A donor with more to do than it can: what its requesters are told, over memory streams and over
real hosts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.answerers import FakeAnswerer
from tests.peer.exchange_lab import NETWORK, TINY_MODEL, Lab, make_request, no_renewal
from tests.peer.hosts import LOOPBACK, open_asking_host, wait_until
from tokenplace import defaults
from tokenplace.engine.fake import FakeEngine
from tokenplace.engine.fake_model import FakeModel
from tokenplace.errors import DonorBusy, TokenplaceError
from tokenplace.generation import (
    Accepted,
    Alive,
    Event,
    Finished,
    GenerateRequest,
    Phase,
    Tokens,
)
from tokenplace.operations import EmbedRequest
from tokenplace.peer.admission import Admission
from tokenplace.peer.donor import Donor
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.requester import RemoteDonor, SealTarget
from tokenplace.peer.wire import GENERATE_PROTOCOL
from tokenplace.sealing.epochs import Epochs
from tokenplace.sealing.keys import KeyRing
from tokenplace.sealing.suites import best_key

HOG, OTHER = "203.0.113.7", "198.51.100.7"
ONE_AT_A_TIME = FakeModel(artifact=TINY_MODEL, prefill_tps=1000.0, decode_tps=10.0, n_slots=1)
TEN_SECONDS = make_request(max_tokens=100, ignore_eog=True)


@dataclass
class Heard:
    """Events of one answer, with the time of each, and the error that ended it."""

    events: list[Event] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    error: TokenplaceError | None = None

    def of(self, kind: type[Event]) -> list[tuple[float, Event]]:
        both = zip(self.at, self.events, strict=True)
        return [(at, event) for at, event in both if type(event) is kind]

    @property
    def has_ended(self) -> bool:
        return self.error is not None or (
            bool(self.events) and isinstance(self.events[-1], Finished)
        )

    async def take(self, donor: RemoteDonor, request: GenerateRequest) -> None:
        try:
            async with donor.generate(request) as events:
                async for event in events:
                    self.events.append(event)
                    self.at.append(trio.current_time())
        except TokenplaceError as error:
            self.error = error


async def ask(lab: Lab, remote_ip: str, request: GenerateRequest = TEN_SECONDS) -> Heard:
    """Ask from this address, and go on when the donor has said yes or no."""
    lab.remote_ip = remote_ip
    heard = Heard()
    lab.nursery.start_soon(heard.take, lab.remote(), request)
    while not heard.events and not heard.has_ended:
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(0.01)
    return heard


# ---------------------------------------------------------------- shedding


async def test_the_queue_makes_room_for_who_holds_less_of_it(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(defaults, "MAX_QUEUED", 3)
    engine = FakeEngine(ONE_AT_A_TIME)
    async with Lab(engine).running() as lab:
        runs, *queued = [await ask(lab, HOG) for _ in range(4)]
        assert (lab.admission.n_running, lab.admission.n_queued) == (1, 3)
        newcomer = await ask(lab, OTHER)
        assert isinstance(newcomer.events[0], Accepted)
        await wait_until(lambda: queued[-1].has_ended)
        shed = queued[-1].error
        assert isinstance(shed, DonorBusy)
        assert shed.retry_after_s == pytest.approx(30, abs=1), "when it would have begun"
        assert engine.load.n_queued == 3, "the engine has forgotten it"
        assert (lab.admission.n_shed, lab.admission.n_queued) == (1, 3)
        refused = await ask(lab, OTHER)  # HOG has two left that wait, and one that runs
        assert not refused.error
        assert (await ask(lab, OTHER)).error, "now it has no more than OTHER would"
        await wait_until(lambda: all(h.has_ended for h in (runs, newcomer, queued[0])), 100)
        assert not any(heard.error for heard in (runs, newcomer, queued[0]))
        await wait_until(lambda: not engine.load.n_running, 100)
        assert lab.donor.statistics.n_failed == 3
        await lab.settled()


async def test_what_has_begun_is_never_shed(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(defaults, "MAX_QUEUED", 1)
    model = replace(ONE_AT_A_TIME, n_slots=2, prefill_tps=1.0)
    async with Lab(FakeEngine(model)).running() as lab:
        reading = [await ask(lab, HOG, make_request("read this", max_tokens=2)) for _ in range(2)]
        await trio.sleep(0.1)  # long before a heartbeat would tell of it
        assert (lab.admission.n_running, lab.admission.n_queued) == (2, 0)
        waits, newcomer = await ask(lab, HOG), await ask(lab, OTHER)
        await wait_until(lambda: waits.has_ended)
        assert isinstance(waits.error, DonorBusy)
        assert not newcomer.error
        await wait_until(lambda: all(heard.has_ended for heard in reading), 100)
        assert not any(heard.error for heard in reading)


async def test_answers_that_come_whole_make_room_too(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr(defaults, "MAX_QUEUED", 3)
    engine = FakeAnswerer(work_s=5.0)
    question = EmbedRequest("tiny", ("one",), None, artifact=TINY_MODEL)
    n_busy = 0

    async def embed(lab: Lab) -> None:
        nonlocal n_busy
        try:
            await lab.remote().embed(question)
        except DonorBusy:
            n_busy += 1

    async with Lab(engine).running() as lab, trio.open_nursery() as nursery:
        lab.remote_ip = HOG
        for _ in range(3):
            nursery.start_soon(embed, lab)
        await wait_until(lambda: lab.admission.n_queued == 3)
        lab.remote_ip = OTHER
        await lab.remote().embed(question)
        await wait_until(lambda: lab.is_idle)
        assert (n_busy, engine.n_cancelled, lab.admission.n_shed) == (1, 1, 1)


# ---------------------------------------------------------------- the wait


async def test_nobody_is_let_in_who_would_wait_for_too_long(autojump_clock: MockClock) -> None:
    async with Lab(FakeEngine(ONE_AT_A_TIME)).running() as lab:
        heard = [await ask(lab, HOG) for _ in range(10)]
        let_in = [each for each in heard if not each.error]
        # 10 s each: the 7th waits for a minute, less what has passed.
        assert len(let_in) == 7
        assert all(isinstance(each.error, DonorBusy) for each in heard[7:])
        advice = [each.error.retry_after_s for each in heard[7:] if each.error]
        assert advice == pytest.approx([10, 10, 10], abs=1)
        assert lab.admission.n_refused == 3
        # Who holds less has its turn sooner, and so is welcome.
        light = await ask(lab, OTHER)
        assert not light.error
        await wait_until(lambda: light.has_ended, 30)


async def test_a_long_prompt_alone_is_no_wait(autojump_clock: MockClock) -> None:
    model = replace(ONE_AT_A_TIME, prefill_tps=1.0)
    async with Lab(FakeEngine(model)).running() as lab:
        prompt = "word " * 80  # 100 tokens
        heard = await ask(lab, HOG, make_request(prompt, max_tokens=1))
        (_, accepted) = heard.of(Accepted)[0]
        assert isinstance(accepted, Accepted)
        assert accepted.eta_ms > 1000 * defaults.MAX_QUEUE_WAIT_S
        assert accepted.wait_ms == 0, "that is nobody else's business"
        await wait_until(lambda: heard.has_ended, 200)
        assert not heard.error


# ---------------------------------------------------------------- real hosts


@dataclass
class Donating:
    """A donor on a host of its own, and whoever asks it."""

    host: PeerHost
    engine: FakeEngine

    def __post_init__(self) -> None:
        self.key_ring, self.epochs, self.admission = KeyRing(), Epochs(), Admission()
        donor = Donor(
            network=NETWORK,
            donor_id=self.host.identity.peer_id_bytes,
            key_ring=self.key_ring,
            epochs=self.epochs,
            models=lambda: {TINY_MODEL: self.engine},
            admission=self.admission,
            signed_keys=lambda: b"",
            signed_live=lambda: b"",
            clock=trio.current_time,
        )
        self.host.set_stream_handler(GENERATE_PROTOCOL, donor.handle)

    def remote(self, asker: PeerHost) -> RemoteDonor:
        now, peer_id = trio.current_time(), self.host.peer_id
        key = best_key(self.key_ring.advertised(now).keys)
        assert key is not None
        return RemoteDonor(
            peer_id=peer_id,
            donor_id=self.host.identity.peer_id_bytes,
            open_stream=partial(asker.open_stream, peer_id, GENERATE_PROTOCOL, self.host.addrs()),
            target=SealTarget(key, self.epochs.current(now)),
            network=NETWORK,
            renew=no_renewal,
        )


@asynccontextmanager
async def open_donating(model: FakeModel) -> AsyncIterator[Donating]:
    async with open_host(throwaway_identity(), listen=(LOOPBACK,)) as host:
        yield Donating(host, FakeEngine(model))


async def leave(remote: RemoteDonor, leaving: trio.Event) -> None:
    """Ask, and leave the answer when told so."""
    long = make_request("word " * 80, max_tokens=1)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Heard().take, remote, long)
            await leaving.wait()
            scope.cancel()


@pytest.mark.parametrize("way", ["leaves the answer", "its host is gone"])
async def test_who_goes_while_the_prompt_is_read_frees_the_slot(way: str) -> None:
    minutes = replace(ONE_AT_A_TIME, prefill_tps=1.0)
    async with open_donating(minutes) as bob, trio.open_nursery() as nursery:
        leaving, gone = trio.Event(), trio.Event()

        async def requester() -> None:
            async with open_asking_host() as alice:
                if way == "its host is gone":
                    nursery.start_soon(Heard().take, bob.remote(alice), make_request("w " * 200))
                    await leaving.wait()
                else:
                    await leave(bob.remote(alice), leaving)
                    await gone.wait()

        nursery.start_soon(requester)
        await wait_until(lambda: bob.engine.load.n_running == bob.admission.n_running == 1)
        leaving.set()
        # Its prompt would be read for a minute and more.
        await wait_until(
            lambda: bob.engine.load.n_running == bob.admission.n_running == 0, timeout_s=10
        )
        gone.set()


async def test_those_who_wait_hear_that_it_gets_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "HEARTBEAT_S", 0.1)
    model = replace(ONE_AT_A_TIME, decode_tps=100.0)
    async with open_donating(model) as bob, open_asking_host() as alice:
        all_heard = [Heard() for _ in range(4)]
        async with trio.open_nursery() as nursery:
            for heard in all_heard:
                request = make_request(max_tokens=60, ignore_eog=True)
                nursery.start_soon(heard.take, bob.remote(alice), request)
        assert not any(heard.error for heard in all_heard)
        last = max(all_heard, key=lambda heard: heard.of(Tokens)[0][0])
        told = [event for _, event in last.of(Alive) if isinstance(event, Alive)]
        queued = [event for event in told if event.phase is Phase.QUEUED]
        assert {event.position for event in queued} == {0, 1, 2}
        assert all(a.position >= b.position for a, b in pairwise(queued))
        assert queued[-1].eta_ms < queued[0].eta_ms
