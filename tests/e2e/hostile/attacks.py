"""What strangers do to a running peer: sockets left open, garbage on streams, requests by hand.

Start at `Target`. The attackers are real: sockets, and libp2p hosts in the test's own process.
"""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

import base58
import trio

from tests.e2e.network import Network
from tokenplace import defaults
from tokenplace.cli.processes import PeerProcess
from tokenplace.dht.directory import fetch
from tokenplace.dht.directory_wire import Op, Query
from tokenplace.dht.donors import DirectoryCache, DonorRecord
from tokenplace.errors import ErrorCode
from tokenplace.generation import Event, GenerateRequest, SamplingParams, TextInput
from tokenplace.node.asking import target_of
from tokenplace.peer.frames import decode_frames
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.refusal import decode_refusal
from tokenplace.peer.requester import SealTarget
from tokenplace.peer.streams import PeerStream
from tokenplace.peer.wire import FRAME_LENGTH, GENERATE_PROTOCOL, encode_request
from tokenplace.sealing.answer import AnswerOpener, Chunk, ReplySecrets
from tokenplace.sealing.request import request_digest, seal_request

GARBAGE = bytes(range(256)) * 8


@dataclass(frozen=True)
class Target:
    """The peer under attack: who it is and where it listens."""

    peer_id: str
    addrs: tuple[str, ...]

    @classmethod
    def of(cls, network: Network, peer: PeerProcess) -> Target:
        status = network.status(peer)
        return cls(status["peer_id"], tuple(status["addresses"]))

    @property
    def port(self) -> int:
        return int(self.addrs[0].split("/tcp/")[1].split("/")[0])

    @property
    def raw_id(self) -> bytes:
        return base58.b58decode(self.peer_id)


@contextmanager
def sockets_left_open(port: int, openings: Sequence[bytes], n_each: int) -> Iterator[None]:
    """Connections that said something, and then nothing, until the block ends."""
    opened = []
    try:
        for opening in [*openings] * n_each:
            opened.append(socket.create_connection(("127.0.0.1", port)))
            opened[-1].sendall(opening)
        yield
    finally:
        for connection in opened:
            connection.close()


def connect_and_leave(port: int, openings: Sequence[bytes]) -> None:
    """Connections that are closed as soon as they have said something."""
    for opening in openings:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(opening)


# ---------------------------------------------------------------- libp2p


@asynccontextmanager
async def open_attacker(target: Target) -> AsyncIterator[PeerHost]:
    """A host of its own that is connected to the target."""
    async with open_host(throwaway_identity()) as host:
        await host.connect(target.peer_id, target.addrs)
        yield host


async def open_silent_streams(
    host: PeerHost, target: Target, protocol: str, openings: Sequence[bytes]
) -> list[PeerStream]:
    """Streams that said something, and then nothing."""
    streams = []
    for opening in openings:
        streams.append(await host.open_stream(target.peer_id, protocol, target.addrs))
        if opening:
            with suppress(trio.BrokenResourceError):  # one stream too many for the target
                await streams[-1].send_all(opening)
    return streams


# ---------------------------------------------------------------- requests made by hand


@dataclass(frozen=True)
class Forge:
    """Makes requests to one donor, good and bad, from what its directory says."""

    target: Target
    record: DonorRecord

    @classmethod
    async def of(cls, host: PeerHost, target: Target) -> Forge:
        """Fetch and verify the donor's signed objects, as any requester does."""
        now = time.time()
        answer = await fetch(host, target.peer_id, Query(Op.PEER), addrs=target.addrs)
        cache = DirectoryCache(defaults.NETWORK, allow_private=True)
        record = cache.add(
            answer.entries[0], answered_by=target.peer_id, addrs=target.addrs, rtt_s=0.0, now=now
        )
        assert record is not None
        return cls(target, record)

    @property
    def seal_target(self) -> SealTarget:
        return target_of(self.record)

    def request(self, max_tokens: int) -> GenerateRequest:
        model = self.record.offer.models[0]
        return GenerateRequest(
            model=model.name,
            input=TextInput("One, two,"),
            sampling=SamplingParams(),
            seed=bytes(8),
            cache_scope=bytes(16),
            as_of="2025-01-31",
            max_tokens=max_tokens,
            ignore_eog=True,
            artifact=model.artifact,
        )

    def frame(
        self,
        *,
        to: SealTarget | None = None,
        donor_id: bytes = b"",
        network: str = defaults.NETWORK,
        max_tokens: int = 3,
    ) -> tuple[bytes, AnswerOpener]:
        """A request's bytes, and what opens its answer. Without arguments it is a good one."""
        to = to or self.seal_target
        reply = ReplySecrets.generate()
        request = self.request(max_tokens)
        payload = encode_request(request, to.epoch, reply.resp_secret, reply.key.public)
        sealed = seal_request(payload, to.key, donor_id or self.target.raw_id, network)
        return framed(sealed), AnswerOpener(reply, request_digest(sealed))


def framed(sealed: bytes) -> bytes:
    return FRAME_LENGTH.pack(len(sealed)) + sealed


def refusal_in(answer: bytes | None) -> ErrorCode:
    """The code of an unsealed refusal."""
    assert answer, "no answer at all"
    assert answer[0] == 0, "it was taken"
    return decode_refusal(answer[3:]).error.code


def events_in(answer: bytes | None, opener: AnswerOpener) -> list[Event]:
    """What a whole sealed answer says."""
    assert answer, "no answer at all"
    opener.receive_data(answer)
    opener.receive_eof()
    events: list[Event] = []
    while (chunk := opener.next_item()) is not None:
        assert isinstance(chunk, Chunk), "it was refused"
        events += decode_frames(chunk.frames)  # type: ignore[arg-type]
    return events


# ---------------------------------------------------------------- attacks, one host each


async def requests_left_open(host: PeerHost, target: Target) -> None:
    frame, _ = (await Forge.of(host, target)).frame()
    large = FRAME_LENGTH.pack(defaults.MAX_REQUEST_FRAME_BYTES) + bytes(100_000)
    openings = [b"", frame[:3], frame[:-1], large, large, large]
    await open_silent_streams(host, target, GENERATE_PROTOCOL, openings * 4)


async def requests_abandoned(host: PeerHost, target: Target) -> None:
    """Good ones, from somebody who leaves at once, or breaks the rules while waiting."""
    forge = await Forge.of(host, target)
    frames = [forge.frame(max_tokens=3000)[0] for _ in range(12)]
    for number, stream in enumerate(
        await open_silent_streams(host, target, GENERATE_PROTOCOL, frames)
    ):
        end = (stream.reset, stream.send_eof, stream.aclose)[number % 3]
        if number < 9:
            await end()
        else:
            await stream.send_all(GARBAGE)
