"""What a donor can do to who asks it. Start at `BYTES`; those in frames that could be right are in
`frame_lies.py`, and `telling.py` tells them.

Every lie is told over real libp2p, by a donor that has opened the request and can seal whatever it
wants to say. What counts is how the requester ends it: with which error, and that it does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import msgpack
import trio

from tokenplace import defaults
from tokenplace.errors import (
    ConnectionLost,
    DeadlineExceeded,
    DonorBusy,
    DonorSilent,
    RemoteProtocolError,
    StaleEpoch,
    TokenplaceError,
    UnknownKey,
)
from tokenplace.generation import (
    Accepted,
    Alive,
    ChoiceEnd,
    EogStop,
    Finished,
    Logprob,
    Phase,
    Stop,
    Timings,
    Tokens,
    TopToken,
    Usage,
)
from tokenplace.peer.frames import Frame, encode_frame
from tokenplace.peer.streams import PeerStream, receive_exactly
from tokenplace.peer.wire import FRAME_LENGTH
from tokenplace.sealing.answer import AnswerSealer

MAX_NEW: Final = 8  # tokens that every request asks for, of each choice
N_CHOICES: Final = 2  # and choices
N_TOP: Final = 2  # and likely tokens with each
ACCEPTED: Final = Accepted(bytes(32), 3, 0, 4096, MAX_NEW, "tp/1", 0, 0, "")
ALIVE: Final = Alive(Phase.DECODE, 0.5, 0)
PATIENCE: Final = Accepted(bytes(32), 3, 0, 4096, MAX_NEW, "tp/1", (1 << 32) - 1, 0, "")
REQUEUED: Final = Alive(Phase.REQUEUED, 0.0, 0)
CHUNK_LENGTH: Final = b"\x60\x10"  # 8 KiB and a tag
DEEP: Final = b"\x91" * 8000 + b"\xc0"


def tokens(
    index: int, n: int = 1, piece: bytes = b"x", choice: int = 0, n_top: int | None = 0
) -> Tokens:
    """Right but for what the arguments say. n_top: likely tokens with each; None: no logprobs."""
    logprobs: tuple[Logprob, ...] = ()
    if n_top is not None:
        logprobs = (Logprob(-0.5, (TopToken(1, piece, -0.5),) * n_top),) * n
    return Tokens(choice, index, (1,) * n, (piece,) * n, logprobs)


def finished(*choices: int, stop: Stop | None = None) -> Finished:
    ends = tuple(ChoiceEnd(choice, stop or EogStop(2)) for choice in choices)
    return Finished(ends, Usage(3, 0, 1), Timings(0, 0, 0))


def frame(**fields: object) -> bytes:
    data: bytes = msgpack.packb(fields)
    return data


@dataclass
class LiarsEnd:
    """The stream of one request that a liar answers. open: makes the sealer out of the request."""

    stream: PeerStream
    open: Callable[[bytes], AnswerSealer]
    _sealer: AnswerSealer | None = field(default=None)

    async def read_request(self) -> None:
        """As an honest donor."""
        (length,) = FRAME_LENGTH.unpack(await receive_exactly(self.stream, FRAME_LENGTH.size))
        self._sealer = self.open(await receive_exactly(self.stream, length))

    async def begin(self) -> None:
        """The answer's opening."""
        await self.read_request()
        assert self._sealer is not None, "just read"
        await self.say(self._sealer.opening)

    async def say(self, data: bytes) -> None:
        """Bytes as they are."""
        await self.stream.send_all(data)

    async def tell(self, *frames: Frame | bytes, is_final: bool = False) -> None:
        """One chunk of these frames."""
        await self.say(self.seal(*frames, is_final=is_final))

    def seal(self, *frames: Frame | bytes, is_final: bool = False) -> bytes:
        """The bytes of one chunk."""
        assert self._sealer is not None, "nothing to seal with"
        parts = [part if isinstance(part, bytes) else encode_frame(part) for part in frames]
        return self._sealer.seal(b"".join(parts), is_final=is_final)


Lie = Callable[[LiarsEnd], Awaitable[object]]


@dataclass(frozen=True)
class Told:
    """One row. ends_with: what the requester makes of it."""

    name: str
    lie: Lie
    ends_with: type[TokenplaceError]


# ---------------------------------------------------------------- kinds of lies


def says(*parts: bytes) -> Lie:
    """Bytes instead of an answer."""

    async def lie(end: LiarsEnd) -> None:
        await end.read_request()
        for part in parts:
            await end.say(part)

    return lie


def says_unasked(data: bytes) -> Lie:
    """Bytes before anything of the request was read."""

    async def lie(end: LiarsEnd) -> None:
        await end.say(data)

    return lie


def opens(*parts: bytes, then_closes: bool = False) -> Lie:
    """A true opening, and these bytes for chunks."""

    async def lie(end: LiarsEnd) -> None:
        await end.begin()
        for part in parts:
            await end.say(part)
        if then_closes:
            await end.stream.aclose()

    return lie


def tells(*frames: Frame | bytes, is_final: bool = False, then: str = "silence") -> Lie:
    """Each frame in a chunk of its own, the last maybe the final one; then silence, or what `then`
    is called.
    """

    async def lie(end: LiarsEnd) -> None:
        await end.begin()
        for index, part in enumerate(frames, 1):
            await end.tell(part, is_final=is_final and index == len(frames))
        if then == "closes":
            await end.stream.aclose()
        elif then == "resets":
            await end.stream.reset()

    return lie


def repeats(*frames: Frame | bytes, after: tuple[Frame, ...] = (), pause_s: float = 0.05) -> Lie:
    """A chunk of `frames` again and again. pause_s: 0 for as fast as the requester takes them."""

    async def lie(end: LiarsEnd) -> None:
        await tells(*after)(end)
        while True:
            await end.tell(*frames)
            await trio.sleep(pause_s)

    return lie


async def trickles(end: LiarsEnd) -> None:
    """A chunk that never comes to its end."""
    await opens(CHUNK_LENGTH)(end)
    while True:
        await end.say(b"x")
        await trio.sleep(0.05)


async def repeats_a_chunk(end: LiarsEnd) -> None:
    """The same bytes once more."""
    await end.begin()
    chunk = end.seal(ACCEPTED)
    for _ in range(2):
        await end.say(chunk)


async def swaps_chunks(end: LiarsEnd) -> None:
    """The second chunk before the first."""
    await end.begin()
    first, second = end.seal(ACCEPTED), end.seal(tokens(0))
    await end.say(second + first)


async def floods(end: LiarsEnd) -> None:
    """Chunks of the right length, none of which opens."""
    await end.begin()
    while True:
        await end.say((CHUNK_LENGTH + bytes(8192 + 16)) * 10)


async def reads_nothing(end: LiarsEnd) -> None:
    """Not even that it is left, for a while."""
    await trio.sleep(2 * defaults.IDLE_TIMEOUT_S)


async def resets_at_once(end: LiarsEnd) -> None:
    await end.stream.reset()


async def closes_after_the_request(end: LiarsEnd) -> None:
    await end.read_request()
    await end.stream.aclose()


def refusal(**fields: object) -> Lie:
    payload: bytes = msgpack.packb(fields)
    return refuses(payload)


def refuses(payload: bytes) -> Lie:
    return says(b"\0" + len(payload).to_bytes(2, "big") + payload)


# ---------------------------------------------------------------- the table

OPENING: Final = b"\1\x04\x90" + bytes(1168 + 32)
BROKEN: Final = RemoteProtocolError

SILENCES: Final = (
    Told("silence: reads nothing", reads_nothing, DonorSilent),
    Told("silence: from the start", says(), DonorSilent),
    Told("silence: half a refusal", says(b"\0\x01"), DonorSilent),
    Told("silence: half an opening", says(b"\1\x04\x90" + bytes(500)), DonorSilent),
    Told("silence: after the opening", opens(), DonorSilent),
    Told("silence: half a chunk", opens(b"\x40\x90" + bytes(100)), DonorSilent),
    Told("silence: after yes", tells(ACCEPTED), DonorSilent),
    Told("silence: after a token", tells(ACCEPTED, tokens(0)), DonorSilent),
    Told("silence: after the end", tells(ACCEPTED, finished(0, 1), is_final=True), DonorSilent),
    Told("delay: empty chunks for ever", repeats(), DeadlineExceeded),
    Told("delay: empty chunks without a pause", repeats(pause_s=0), DeadlineExceeded),
    Told("delay: a chunk byte by byte", trickles, DeadlineExceeded),
    Told("delay: unknown frames for ever", repeats(frame(f="later")), DeadlineExceeded),
    Told("delay: alive for ever", repeats(ALIVE, after=(ACCEPTED,)), DeadlineExceeded),
    Told(
        "delay: alive without a pause",
        repeats(*[ALIVE] * 50, after=(ACCEPTED,), pause_s=0),
        DeadlineExceeded,
    ),
    Told(
        "delay: alive after a token", repeats(ALIVE, after=(ACCEPTED, tokens(0))), DeadlineExceeded
    ),
    Told("delay: an eta of 49 days", repeats(ALIVE, after=(PATIENCE,)), DeadlineExceeded),
    Told("delay: requeued for ever", repeats(REQUEUED, after=(ACCEPTED,)), DeadlineExceeded),
)

ENDS: Final = (
    Told("end: at once", resets_at_once, ConnectionLost),
    Told("end: instead of an answer", closes_after_the_request, ConnectionLost),
    Told("end: after the opening", opens(then_closes=True), ConnectionLost),
    Told("end: in a chunk", opens(b"\x40\x90" + bytes(9), then_closes=True), ConnectionLost),
    Told("end: after yes", tells(ACCEPTED, then="closes"), ConnectionLost),
    Told("end: without a final chunk", tells(ACCEPTED, tokens(0), then="closes"), ConnectionLost),
    Told("end: reset after a token", tells(ACCEPTED, tokens(0), then="resets"), ConnectionLost),
)

BYTES: Final = (
    Told(
        "bytes: an answer before the request",
        says_unasked(OPENING + b"\x40\x90" + bytes(0x90)),
        BROKEN,
    ),
    Told("bytes: neither yes nor no", says(b"\7" * 100), BROKEN),
    Told("bytes: an opening of another length", says(b"\1\xff\xff"), BROKEN),
    Told("bytes: an opening of garbage", says(OPENING + b"\x40\x90" + bytes(0x90)), BROKEN),
    Told("bytes: a chunk of 2⁶² bytes", opens(b"\xff" * 8), BROKEN),
    Told("bytes: a chunk a byte too long", opens(b"\x80\x00\x40\x11"), BROKEN),
    Told("bytes: a chunk shorter than its tag", opens(b"\x01x"), BROKEN),
    Told("bytes: a chunk that does not open", opens(b"\x40\x90" + bytes(0x90)), BROKEN),
    Told("bytes: a final chunk without end", opens(b"\x00" + bytes(20_000)), BROKEN),
    Told("bytes: chunks swapped", swaps_chunks, BROKEN),
    Told("bytes: a chunk twice", repeats_a_chunk, BROKEN),
    Told("bytes: a flood", floods, BROKEN),
    Told("no: 64 KiB", says(b"\0\xff\xff" + bytes(65535)), BROKEN),
    Told("no: garbage", refuses(bytes(range(256))), BROKEN),
    Told("no: a list in a list in a list", refuses(DEEP), BROKEN),
    Told("no: a map of 4 billion", refuses(b"\xdf\xff\xff\xff\xff"), BROKEN),
    Told("no: without a reason", refusal(), BROKEN),
    Told("no: for an unknown reason", refusal(code="mood"), BROKEN),
    Told("no: for a reason that is said sealed", refusal(code="internal"), BROKEN),
    Told("no: come back in a million years", refusal(code="busy", retry_after_s=3e13), DonorBusy),
    Told("no: a stale epoch, for ever", refusal(code="stale_epoch"), StaleEpoch),
    Told(
        "no: an unknown key, for ever",
        refusal(code="unknown_key", keys=b"k", live=b"l"),
        UnknownKey,
    ),
)
