"""The peer that `benchmarks.soak` measures: one serving host with the real donor, in a process of
its own. Start at `serve`.

It prints one line of JSON when it listens (`Address`), and one for every line it is sent (`State`),
and ends with its input. It knows nothing of what is asked of it, so that nothing but its own state
is measured.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import psutil
import trio

from tokenplace.errors import Unsupported
from tokenplace.features import Feature
from tokenplace.generation import (
    Accepted,
    ChoiceEnd,
    EogStop,
    Event,
    Finished,
    GenerateRequest,
    Timings,
    Tokens,
    Usage,
)
from tokenplace.operations import CountRequest, Embeddings, EmbedRequest, ScoreRequest, Scores
from tokenplace.peer.admission import Admission
from tokenplace.peer.donor import Donor
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.streams import PeerStream
from tokenplace.peer.wire import GENERATE_PROTOCOL
from tokenplace.sealing.epochs import Epochs
from tokenplace.sealing.keys import KeyRing
from tokenplace.sealing.suites import best_key

NETWORK: Final = "benchmark"
ARTIFACT: Final = hashlib.sha256(b"the model of the soak").hexdigest()
ECHO: Final = "/tokenplace/benchmark/echo/1.0.0"
ANSWER: Final = b"one two three four five six seven eight"
MAX_ECHO_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Address:
    """Where the peer listens, and who it is: as text, and as the raw bytes in hex."""

    peer_id: str
    donor_id: str
    addrs: list[str]


@dataclass(frozen=True, slots=True)
class State:
    """The peer at one moment.

    memory_mb: resident, after garbage was collected. streams: of all connections. exchanges: open,
    queued or running. key_id, public, epoch: what a request is sealed to, bytes in hex.
    """

    tasks: int
    descriptors: int
    memory_mb: float
    connections: int
    streams: int
    exchanges: int
    key_id: int
    public: str
    epoch: str


class FixedAnswer:
    """An `Answerer` that gives everybody the same answer, one word a token, at once."""

    @trio.as_safe_channel
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        words = ANSWER.split()
        yield Accepted(bytes(32), 1, 0, 4096, len(words), "tp/1", 0, 0)
        for index, word in enumerate(words):
            yield Tokens(0, index, (index,), (word,))
        yield Finished((ChoiceEnd(0, EogStop(2)),), Usage(1, 0, len(words)), Timings(0, 0, 0))

    async def embed(self, request: EmbedRequest) -> Embeddings:
        raise Unsupported(Feature.EMBEDDINGS)

    async def count(self, request: CountRequest) -> int:
        return len(ANSWER.split())

    async def score(self, request: ScoreRequest) -> Scores:
        raise Unsupported("score")


async def echo(stream: PeerStream) -> None:
    """Send back what comes, until it ends."""
    while data := await stream.receive_some(MAX_ECHO_BYTES):
        await stream.send_all(data)


async def serve() -> None:
    """Serve until the input ends."""
    identity = throwaway_identity()
    key_ring, epochs, admission = KeyRing(), Epochs(), Admission()
    models: Mapping[str, FixedAnswer] = {ARTIFACT: FixedAnswer()}
    donor = Donor(
        network=NETWORK,
        donor_id=identity.peer_id_bytes,
        key_ring=key_ring,
        epochs=epochs,
        models=lambda: models,
        admission=admission,
        # For those whose keys are out of date; the benchmark asks for new ones in time.
        signed_keys=bytes,
        signed_live=bytes,
        clock=trio.current_time,
    )
    async with open_host(identity, listen=["/ip4/127.0.0.1/tcp/0"]) as host:
        host.set_stream_handler(GENERATE_PROTOCOL, donor.handle)
        host.set_stream_handler(ECHO, echo)
        _say(Address(identity.peer_id, identity.peer_id_bytes.hex(), host.addrs()))
        async with trio.lowlevel.FdStream(os.dup(0)) as questions:
            async for question in questions:
                for _ in question.splitlines():
                    _say(_state(host, key_ring, epochs, admission))


def _state(host: PeerHost, key_ring: KeyRing, epochs: Epochs, admission: Admission) -> State:
    now = trio.current_time()
    key = best_key(key_ring.advertised(now).keys)
    assert key is not None, "the key ring lists a key that we can seal to"
    gc.collect()
    process = psutil.Process()
    connections = host.connections()
    return State(
        tasks=trio.lowlevel.current_statistics().tasks_living,
        descriptors=process.num_fds(),
        memory_mb=process.memory_info().rss / 1e6,
        connections=len(connections),
        streams=sum(connection.n_streams for connection in connections),
        exchanges=admission.n_open + admission.n_queued + admission.n_running,
        key_id=key.id,
        public=key.public.hex(),
        epoch=epochs.current(now).hex(),
    )


def _say(what: Any) -> None:
    print(json.dumps(asdict(what)), flush=True)


if __name__ == "__main__":
    trio.run(serve)
