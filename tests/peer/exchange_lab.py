"""A donor and a requester joined by memory streams. Start at `Lab`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from tests.answerers import answerer_of
from tests.fakes import EchoEngine
from tests.peer.memory import MemoryPeerStream, stream_pair
from tokenplace.errors import TokenplaceError
from tokenplace.generation import (
    Accepted,
    Alive,
    Event,
    GenerateRequest,
    Generator,
    Phase,
    SamplingParams,
    TextInput,
    Tokens,
)
from tokenplace.operations import Request
from tokenplace.peer.admission import Admission
from tokenplace.peer.donor import Donor
from tokenplace.peer.requester import RemoteDonor, SealTarget
from tokenplace.peer.streams import OpenStream
from tokenplace.peer.wire import FRAME_LENGTH, encode_request
from tokenplace.sealing.answer import AnswerOpener, ReplySecrets
from tokenplace.sealing.epochs import Epochs
from tokenplace.sealing.keys import KeyRing
from tokenplace.sealing.request import request_digest, seal_request
from tokenplace.sealing.suites import best_key

ALICE, BOB = "ALICE", "BOB"  # asks; donates
BOB_ID = b"\x00\x24\x08\x01\x12\x20" + b"B" * 32
NETWORK = "test"
TINY_MODEL = "ab" * 32
SIGNED_KEYS, SIGNED_LIVE = b"signed keys", b"signed live"


def make_request(prompt: str = "one two three", **changes: object) -> GenerateRequest:
    fields: dict[str, object] = {
        "model": "tiny",
        "input": TextInput(prompt),
        "sampling": SamplingParams(),
        "seed": bytes(8),
        "cache_scope": bytes(16),
        "as_of": "2025-01-31",
        "artifact": TINY_MODEL,
    }
    return GenerateRequest(**{**fields, **changes})  # type: ignore[arg-type]


def text_of(events: list[Event], choice: int = 0) -> bytes:
    tokens = [event for event in events if isinstance(event, Tokens) and event.choice == choice]
    return b"".join(b"".join(event.pieces) for event in tokens)


async def no_renewal(keys: bytes | None, live: bytes | None) -> SealTarget | None:
    return None


@dataclass
class Lab:
    """Bob's donor, and Alice's view of him. Use `async with lab.running()`.

    streams: both ends of every stream opened so far: Alice's, Bob's.
    """

    engine: Generator = field(default_factory=EchoEngine)
    max_read: int = 1 << 30
    remote_ip: str = "203.0.113.7"
    key_ring: KeyRing = field(default_factory=KeyRing)
    epochs: Epochs = field(default_factory=Epochs)
    admission: Admission = field(default_factory=Admission)
    streams: list[tuple[MemoryPeerStream, MemoryPeerStream]] = field(default_factory=list)
    n_serving: int = 0
    donor: Donor = field(init=False)
    nursery: trio.Nursery = field(init=False)

    def __post_init__(self) -> None:
        self._all_served = trio.Event()
        self.donor = Donor(
            network=NETWORK,
            donor_id=BOB_ID,
            key_ring=self.key_ring,
            epochs=self.epochs,
            models=lambda: {TINY_MODEL: answerer_of(self.engine)},
            admission=self.admission,
            signed_keys=lambda: SIGNED_KEYS,
            signed_live=lambda: SIGNED_LIVE,
            clock=trio.current_time,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Lab]:
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            yield self
            nursery.cancel_scope.cancel()

    async def open_stream(self) -> MemoryPeerStream:
        alice, bob = stream_pair((ALICE, BOB), self.remote_ip)
        alice.max_read = bob.max_read = self.max_read
        self.streams.append((alice, bob))
        self.n_serving += 1
        self.nursery.start_soon(self._serve, bob)
        return alice

    async def _serve(self, stream: MemoryPeerStream) -> None:
        """As the host does: close when the handler returns, reset when it is cancelled."""
        try:
            await self.donor.handle(stream)
            await stream.aclose()
        finally:
            await stream.reset()
            self.n_serving -= 1
            if not self.n_serving:
                self._all_served.set()
                self._all_served = trio.Event()

    async def settled(self) -> None:
        """Until the donor has let go of every stream."""
        if self.n_serving:
            await self._all_served.wait()
        assert self.is_idle

    @property
    def is_idle(self) -> bool:
        """Does the donor count nothing as open, queued or running?"""
        return self.admission.n_open + self.admission.n_queued + self.admission.n_running == 0

    def target(self) -> SealTarget:
        now = trio.current_time()
        key = best_key(self.key_ring.advertised(now).keys)
        assert key is not None
        return SealTarget(key, self.epochs.current(now))

    def remote(
        self,
        target: SealTarget | None = None,
        renew: Callable[[bytes | None, bytes | None], Awaitable[SealTarget | None]] = no_renewal,
        open_stream: OpenStream | None = None,
    ) -> RemoteDonor:
        return RemoteDonor(
            peer_id=BOB,
            donor_id=BOB_ID,
            open_stream=open_stream or self.open_stream,
            target=target or self.target(),
            network=NETWORK,
            renew=renew,
        )

    async def ask(self, request: GenerateRequest, remote: RemoteDonor | None = None) -> list[Event]:
        async with (remote or self.remote()).generate(request) as events:
            return [event async for event in events]

    def seal(self, payload: bytes) -> bytes:
        """The frame of a request with this payload."""
        sealed = seal_request(payload, self.target().key, BOB_ID, NETWORK)
        return FRAME_LENGTH.pack(len(sealed)) + sealed

    def seal_request(self, request: Request) -> tuple[bytes, AnswerOpener]:
        """A frame to send by hand, and what opens its answer."""
        reply = ReplySecrets.generate()
        payload = encode_request(request, self.target().epoch, reply.resp_secret, reply.key.public)
        frame = self.seal(payload)
        return frame, AnswerOpener(reply, request_digest(frame[FRAME_LENGTH.size :]))


async def read_all(stream: MemoryPeerStream) -> bytes:
    data = b""
    while piece := await stream.receive_some(1 << 16):
        data += piece
    return data


async def collect(
    lab: Lab, request: GenerateRequest, events: list[Event], wait_s: float = 0
) -> None:
    """Ask, read nothing for a while, and keep what came even if the answer then fails."""
    async with lab.remote().generate(request) as channel:
        await trio.sleep(wait_s)
        async for event in channel:
            events.append(event)  # noqa: PERF401


class Scripted:
    """An engine that says what it is told to, each event after a pause in seconds."""

    def __init__(self, *events: tuple[float, Event | TokenplaceError | Exception]) -> None:
        self.events = events

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        for pause_s, event in self.events:
            await trio.sleep(pause_s)
            if isinstance(event, Exception):
                raise event
            yield event


ACCEPTED = Accepted(bytes(32), 5, 0, 4096, 10, "tp/1", 20_000, 2)
ALIVE = Alive(Phase.PREFILL, 0.5, 0)
TOKEN = Tokens(0, 0, (1,), (b"x",))
