"""The donor's side of an exchange: one sealed request, one sealed answer. Start at `Donor.handle`.

Order and deadlines are docs/protocol.md's, section 5; who may ask is `admission.py`'s, what leaves
when is `outbox.py`'s. Three tasks serve one request: one takes events from the engine, one writes,
one watches the requester.

Differs from a web server: the only sign that a requester has gone is its half of the stream, so
that half is always being read.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import trio

from tokenplace import defaults
from tokenplace.errors import (
    DONOR_ERRORS,
    DeadlineExceeded,
    DonorBusy,
    DonorFinishing,
    DonorInternalError,
    ErrorCode,
    ModelNotOffered,
    RequestTooBig,
    TokenplaceError,
)
from tokenplace.generation import (
    Accepted,
    Alive,
    Event,
    GenerateRequest,
    Generator,
    Phase,
    Tokens,
)
from tokenplace.peer.admission import Admission, Place
from tokenplace.peer.exchange import Exchange
from tokenplace.peer.frames import Frame
from tokenplace.peer.outbox import Outbox
from tokenplace.peer.streams import STREAM_GONE, PeerStream
from tokenplace.peer.wire import (
    FRAME_LENGTH,
    REFUSALS,
    Refusal,
    RequestMap,
    decode_request,
    encode_refusal,
    to_generate_request,
)
from tokenplace.sealing.answer import AnswerSealer
from tokenplace.sealing.epochs import Epochs
from tokenplace.sealing.keys import KeyRing
from tokenplace.sealing.request import open_request

log = logging.getLogger(__name__)

_WORKING: Final = frozenset({Phase.PREFILL, Phase.DECODE})


@dataclass(slots=True)
class Statistics:
    """Counts since the start, for people to see.

    n_served: answers given whole. n_failed: requests refused, or ended by an error frame.
    n_cancelled: answers whose requester left, or did not read. n_answering: running or queued now.
    n_tokens: taken from engines for requesters.
    """

    n_served: int = 0
    n_failed: int = 0
    n_cancelled: int = 0
    n_answering: int = 0
    n_tokens: int = 0


class Donor:
    """Answers sealed requests with this peer's generators."""

    def __init__(
        self,
        *,
        network: str,
        donor_id: bytes,
        key_ring: KeyRing,
        epochs: Epochs,
        generators: Callable[[], Mapping[str, Generator]],
        admission: Admission,
        signed_keys: Callable[[], bytes],
        signed_live: Callable[[], bytes],
        clock: Callable[[], float],
    ) -> None:
        """
        donor_id: this peer's raw peer id bytes. generators: by artifact, as offered at the moment.
        signed_keys, signed_live: the current envelopes, for those whose own are out of date.
        clock: seconds, steady; the same that `epochs` is asked with elsewhere.
        """
        self.statistics = Statistics()
        self._network = network
        self._donor_id = donor_id
        self._key_ring = key_ring
        self._epochs = epochs
        self._generators = generators
        self._admission = admission
        self._signed_keys = signed_keys
        self._signed_live = signed_live
        self._clock = clock
        self._large_requests_bytes = 0
        self._is_finishing = False
        self._idle = trio.Event()

    @property
    def is_finishing(self) -> bool:
        """Are new requests turned away, because this peer is about to stop?"""
        return self._is_finishing

    async def finish(self) -> None:
        """Turn new requests away and wait for the last answer. How long is the caller's to
        bound.
        """
        self._is_finishing = True
        if self.statistics.n_answering:
            await self._idle.wait()

    async def handle(self, stream: PeerStream) -> None:
        """Serve one inbound stream. Whatever the requester sends or the generator raises, nothing
        is raised from here.
        """
        try:
            place = self._admission.open_nowait(stream.remote_ip)
        except DonorBusy as busy:
            await self._refuse(stream, busy)
            return
        try:
            await self._serve(stream, place)
        finally:
            place.release()

    async def _serve(self, stream: PeerStream, place: Place) -> None:
        try:
            sealed = await self._read_request(stream)
            if sealed is None:
                await stream.reset()
                return
            request, sealer = self._open(sealed, place)
        except tuple(REFUSALS.values()) as error:
            await self._refuse(stream, error)
            return
        del sealed  # up to 4 MiB, not needed while the answer runs
        self.statistics.n_answering += 1
        try:
            await self._answer(stream, place, request, sealer)
        finally:
            self.statistics.n_answering -= 1
            if not self.statistics.n_answering and self._is_finishing:
                self._idle.set()

    # ------------------------------------------------------------ the request

    async def _read_request(self, stream: PeerStream) -> bytes | None:
        """The sealed frame; None when the requester went away or took too long. Raises
        `RequestTooBig` or `DonorBusy`.
        """
        with trio.move_on_after(defaults.REQUEST_TIMEOUT_S):
            prefix = await _receive_exactly(stream, FRAME_LENGTH.size)
            if prefix is None:
                return None
            (length,) = FRAME_LENGTH.unpack(prefix)
            if length > defaults.MAX_REQUEST_FRAME_BYTES:
                raise RequestTooBig
            if length <= defaults.SMALL_REQUEST_BYTES:
                return await _receive_exactly(stream, length)
            if self._large_requests_bytes + length > defaults.MAX_LARGE_REQUESTS_BYTES:
                raise DonorBusy(retry_after_s=defaults.BUSY_RETRY_AFTER_S)
            self._large_requests_bytes += length
            try:
                return await _receive_exactly(stream, length)
            finally:
                self._large_requests_bytes -= length
        return None

    def _open(self, sealed: bytes, place: Place) -> tuple[RequestMap, AnswerSealer]:
        """Everything that is checked before an answer can be sealed. Raises one of `REFUSALS`."""
        opened = open_request(sealed, self._key_ring, self._donor_id, self._network)
        request = decode_request(opened.payload)
        sealer = AnswerSealer(request.resp_secret, request.reply_key, opened.digest)
        self._epochs.accept(request.epoch, opened.enc, self._clock())
        place.queue_nowait()
        return request, sealer

    async def _refuse(self, stream: PeerStream, error: TokenplaceError) -> None:
        """Say no in clear: there is no key to seal with, or it is not worth the work."""
        self.statistics.n_failed += 1
        refusal = Refusal(error)
        # A donor that was restarted has a new key and a new epoch: who is told of one needs both.
        if error.code in (ErrorCode.UNKNOWN_KEY, ErrorCode.STALE_EPOCH):
            refusal = Refusal(error, self._signed_keys(), self._signed_live())
        if not await _send(stream, encode_refusal(refusal)):
            await stream.reset()

    # ------------------------------------------------------------ the answer

    async def _answer(
        self, stream: PeerStream, place: Place, opened: RequestMap, sealer: AnswerSealer
    ) -> None:
        answer = _Answer(stream, sealer)
        is_delivered = False
        async with trio.open_nursery() as nursery:
            watching = trio.CancelScope()
            nursery.start_soon(_watch, stream, watching, nursery.cancel_scope)
            nursery.start_soon(self._generate, answer, place, opened)
            is_delivered = await answer.write()
            if is_delivered:
                watching.cancel()  # and the generator may come to its own end
            else:
                nursery.cancel_scope.cancel()
        if not is_delivered:
            self.statistics.n_cancelled += 1
            await stream.reset()
        elif answer.is_failed:
            self.statistics.n_failed += 1
        else:
            self.statistics.n_served += 1

    async def _generate(self, answer: _Answer, place: Place, opened: RequestMap) -> None:
        """Run the generator into the answer. Every way it can fail becomes an error frame."""
        error: TokenplaceError | None
        try:
            request = to_generate_request(opened)
            generator = self._find_generator(request)
            with trio.move_on_after(defaults.MAX_EXCHANGE_S) as scope:
                await _pump(generator, request, answer, place, self.statistics)
            error = DeadlineExceeded() if scope.cancelled_caught else None
        except TokenplaceError as failure:
            error = failure
            if failure.code not in DONOR_ERRORS:
                _log_failure(failure)
        # The one seam behind which anything may be raised: an engine of any kind. The requester is
        # told `internal`; the text of the exception may quote a prompt, so it is not even logged.
        except Exception as failure:
            error = DonorInternalError()
            _log_failure(failure)
        if not answer.is_ended:
            answer.put(error or DonorInternalError("the answer has no end"))

    def _find_generator(self, request: GenerateRequest) -> Generator:
        if self._is_finishing:
            raise DonorFinishing
        try:
            return self._generators()[request.artifact]
        except KeyError:
            raise ModelNotOffered from None


class _Answer:
    """What the tasks of one exchange share: frames go in, and leave sealed when they are due."""

    def __init__(self, stream: PeerStream, sealer: AnswerSealer) -> None:
        self.is_failed = False
        self._stream = stream
        self._sealer = sealer
        self._outbox = Outbox(trio.current_time())
        self._is_due_earlier = trio.Event()

    @property
    def is_ended(self) -> bool:
        return self._outbox.is_ended

    def put(self, frame: Frame) -> None:
        """Never waits: what a requester does not read is bounded by `WRITE_TIMEOUT_S`."""
        due_at = self._outbox.due_at
        self._outbox.put(frame, trio.current_time())
        if isinstance(frame, TokenplaceError):
            self.is_failed = True
        if self._outbox.due_at < due_at:
            self._is_due_earlier.set()

    async def write(self) -> bool:
        """Send chunks as they fall due. False when the requester is gone or does not read."""
        opening = self._sealer.opening
        while True:
            await self._wait_due()
            frames, is_final = self._outbox.take(trio.current_time())
            chunk = opening + self._sealer.seal(frames, is_final=is_final)
            opening = b""
            if not await _send(self._stream, chunk):
                return False
            if is_final:
                return True

    async def _wait_due(self) -> None:
        while self._outbox.due_at > trio.current_time():
            self._is_due_earlier = trio.Event()
            with trio.move_on_at(self._outbox.due_at):
                await self._is_due_earlier.wait()


async def _pump(
    generator: Generator,
    request: GenerateRequest,
    answer: _Answer,
    place: Place,
    statistics: Statistics,
) -> None:
    exchange = Exchange(request)
    async with generator.generate(request) as events:
        async for event in events:
            exchange.check(event)
            if _is_work(event):
                place.run()
            answer.put(event)
            if isinstance(event, Tokens):
                statistics.n_tokens += len(event.ids)


def _is_work(event: Event) -> bool:
    """Does this event show that the engine has begun?"""
    if isinstance(event, Alive):
        return event.phase in _WORKING
    return not isinstance(event, Accepted)


async def _watch(
    stream: PeerStream, watching: trio.CancelScope, exchange: trio.CancelScope
) -> None:
    """Wait for anything from the requester: its end or a reset cancels, and bytes are an error."""
    with watching:
        with contextlib.suppress(*STREAM_GONE):
            await stream.receive_some(1)
        exchange.cancel()


async def _send(stream: PeerStream, data: bytes) -> bool:
    """False when the requester is gone, or has not read for `WRITE_TIMEOUT_S`."""
    with trio.move_on_after(defaults.WRITE_TIMEOUT_S):
        try:
            await stream.send_all(data)
        except STREAM_GONE:
            return False
        return True
    return False


async def _receive_exactly(stream: PeerStream, size: int) -> bytes | None:
    """None when the stream ended before."""
    data = bytearray()
    while len(data) < size:
        try:
            piece = await stream.receive_some(min(size - len(data), defaults.READ_BYTES))
        except STREAM_GONE:
            return None
        if not piece:
            return None
        data += piece
    return bytes(data)


def _log_failure(error: Exception) -> None:
    """The kind of error and where it was raised, never its text."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    log.error("generating failed: %s at %s:%s", type(error).__name__, place.filename, place.lineno)
