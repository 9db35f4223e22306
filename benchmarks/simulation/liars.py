"""Donors that break the protocol inside the seal, where no network could. Start at `Liar`.

The real donor checks what its engine says, so it cannot lie; this one opens requests with the same
keys, and says what it likes. Everything here must be found out by whoever asked, or do no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum, auto
from random import Random
from typing import Final

import trio

from tokenplace.errors import TokenplaceError
from tokenplace.generation import (
    Accepted,
    ChoiceEnd,
    Event,
    Finished,
    GenerateRequest,
    LengthStop,
    StringStop,
    Timings,
    Tokens,
    Usage,
)
from tokenplace.operations import Answerer
from tokenplace.peer.admission import bucket_of
from tokenplace.peer.frames import Frame, encode_frame
from tokenplace.peer.request_map import decode_request
from tokenplace.peer.streams import PeerStream, StreamHandler, receive_exactly
from tokenplace.peer.wire import FRAME_LENGTH, to_request
from tokenplace.sealing.answer import AnswerSealer
from tokenplace.sealing.keys import KeyRing
from tokenplace.sealing.request import open_request


class Kind(StrEnum):
    """What a lie is."""

    GAP = auto()  # a token is left out
    REPEAT = auto()  # a token is said twice
    TOO_LONG = auto()  # more tokens than it promised
    OTHER_CHOICE = auto()  # tokens of a choice that nobody asked for
    ENDS_EARLY = auto()  # "the length is reached", though it is not
    ENDS_AT_NOTHING = auto()  # "a stop string was found", though none was
    ENDS_TWICE = auto()  # bytes behind the end
    NO_END = auto()  # the stream just ends
    FEWER_CHOICES = auto()  # one choice never ends
    WRONG_USAGE = auto()  # it counts more tokens than it delivered
    WRONG_DIGEST = auto()  # it computed another prompt
    UNKNOWN_FRAME = auto()  # bytes that are no frame, well sealed
    TAMPERED = auto()  # a sealed chunk that was changed
    GARBAGE = auto()  # bytes that mean nothing, instead of an answer
    HUGE = auto()  # a chunk announced larger than any may be


@dataclass(frozen=True, slots=True)
class Lie:
    """One lie. at: after so many events of the answer."""

    kind: Kind
    at: int


def draw_lie(dice: Random) -> Lie:
    """Any lie, anywhere."""
    return Lie(dice.choice(list(Kind)), dice.randrange(12))


_OVER_ANY_LIMIT: Final = b"\xff" * 64
_NEVER_ASKED: Final = 15


class Liar:
    """Handles streams as `Donor.handle` does, but may lie."""

    def __init__(
        self,
        *,
        donor_id: bytes,
        network: str,
        key_ring: KeyRing,
        model: Answerer,
        honest: StreamHandler,
        choose: Callable[[], Lie | None],
        dice: Random,
    ) -> None:
        """honest: what is done with a request when `choose` says to tell the truth."""
        self._donor_id = donor_id
        self._network = network
        self._key_ring = key_ring
        self._model = model
        self._honest = honest
        self._choose = choose
        self._dice = dice

    async def handle(self, stream: PeerStream) -> None:
        """Serve one inbound stream."""
        lie = self._choose()
        if lie is None:
            await self._honest(stream)
            return
        try:
            await self._lie(stream, lie)
        except (TokenplaceError, trio.BrokenResourceError, trio.ClosedResourceError):
            await stream.reset()

    async def _lie(self, stream: PeerStream, lie: Lie) -> None:
        (length,) = FRAME_LENGTH.unpack(await receive_exactly(stream, FRAME_LENGTH.size))
        sealed = await receive_exactly(stream, length)
        if lie.kind is Kind.GARBAGE:
            await stream.send_all(self._dice.randbytes(self._dice.randrange(1, 4000)))
            await stream.send_eof()
            return
        now = trio.current_time()
        opened = open_request(sealed, self._key_ring, self._donor_id, self._network, now)
        asked = decode_request(opened.payload)
        sealer = AnswerSealer(asked.resp_secret, asked.reply_key, opened.digest)
        request = to_request(asked, bucket_of(stream.remote_ip))
        if isinstance(request, GenerateRequest):
            await stream.send_all(sealer.opening)
            await self._answer(stream, sealer, request, lie)
        await stream.send_eof()

    async def _answer(
        self, stream: PeerStream, sealer: AnswerSealer, request: GenerateRequest, lie: Lie
    ) -> None:
        n_events = 0
        async with self._model.generate(request) as events:
            async for event in events:
                is_due = n_events >= lie.at
                n_events += 1
                if lie.kind is Kind.NO_END and (is_due or isinstance(event, Finished)):
                    return
                if is_due and lie.kind is Kind.HUGE:
                    await stream.send_all(_OVER_ANY_LIMIT)
                frames = list(_told(event, lie.kind, request)) if is_due else [event]
                for frame in frames:
                    await stream.send_all(self._sealed(sealer, frame, lie.kind, is_due))
                if any(isinstance(frame, Finished) for frame in frames):
                    if lie.kind is Kind.ENDS_TWICE:
                        await stream.send_all(self._dice.randbytes(40))
                    return

    def _sealed(self, sealer: AnswerSealer, frame: Frame, kind: Kind, is_due: bool) -> bytes:
        data = encode_frame(frame)
        if is_due and kind is Kind.UNKNOWN_FRAME:
            data = self._dice.randbytes(len(data))
        chunk = bytearray(sealer.seal(data, is_final=isinstance(frame, Finished)))
        if is_due and kind is Kind.TAMPERED:
            chunk[self._dice.randrange(len(chunk))] ^= 1 << self._dice.randrange(8)
        return bytes(chunk)


def _told(event: Event, kind: Kind, request: GenerateRequest) -> Iterator[Frame]:
    """What is said instead of this event, from the lie's place on."""
    match event, kind:
        case Tokens(), Kind.GAP:
            return
        case Tokens(), Kind.REPEAT:
            yield event
            yield event
        case Tokens(), Kind.OTHER_CHOICE:
            yield replace(event, choice=_NEVER_ASKED)
        case Tokens(), Kind.ENDS_EARLY:
            yield _end(request, LengthStop())
        case Tokens(), Kind.ENDS_AT_NOTHING:
            yield _end(request, StringStop("nowhere"))
        case Accepted(), Kind.WRONG_DIGEST:
            yield replace(event, prompt_digest=bytes(reversed(event.prompt_digest)))
        # Up to its length an answer may be anything: only beyond it the lie can be seen.
        case Finished(), Kind.TOO_LONG if event.choices[0].stop == LengthStop():
            for index in range(event.usage.n_completion, 2000):
                yield Tokens(event.choices[0].choice, index, (1,), (b"more ",))
        case Finished(), Kind.FEWER_CHOICES:
            yield replace(event, choices=event.choices[1:])
        case Finished(), Kind.WRONG_USAGE:
            n_completion = event.usage.n_completion + 7
            yield replace(event, usage=replace(event.usage, n_completion=n_completion))
        case _:
            yield event


def _end(request: GenerateRequest, stop: LengthStop | StringStop) -> Finished:
    choices = [resume.choice for resume in request.resume] or range(request.n)
    return Finished(tuple(ChoiceEnd(n, stop) for n in choices), Usage(5, 0, 3), Timings(0, 0, 0))
