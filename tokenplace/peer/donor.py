"""The donor's side of an exchange: one sealed request, one sealed answer. Start at `Donor.handle`.

Order and deadlines are `exchange.DONOR`'s; who may ask is `admission.py`'s, what leaves when is
`outbox.py`'s. Three tasks serve one request: one takes events from the engine, one writes, one
watches the requester. Each tells the exchange what it sees.

Differs from a web server: the only sign that a requester has gone is its half of the stream, so
that half is always being read.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Callable, Mapping

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
from tokenplace.operations import Answerer, Request
from tokenplace.peer import grease
from tokenplace.peer.admission import Admission, Place
from tokenplace.peer.exchange import DONOR, Exchange, Input, Limit, State
from tokenplace.peer.frames import Frame
from tokenplace.peer.outbox import Outbox
from tokenplace.peer.refusal import REFUSALS, Refusal, encode_refusal
from tokenplace.peer.request_map import RequestMap, decode_request
from tokenplace.peer.running import Running
from tokenplace.peer.statistics import Statistics
from tokenplace.peer.streams import STREAM_GONE, PeerStream, receive_exactly
from tokenplace.peer.wire import FRAME_LENGTH, to_request
from tokenplace.peer.work import work
from tokenplace.sealing.answer import AnswerSealer
from tokenplace.sealing.epochs import Epochs
from tokenplace.sealing.keys import KeyRing
from tokenplace.sealing.request import open_request

log = logging.getLogger(__name__)


class Donor:
    """Answers sealed requests with this peer's models."""

    def __init__(
        self,
        *,
        network: str,
        donor_id: bytes,
        key_ring: KeyRing,
        epochs: Epochs,
        models: Callable[[], Mapping[str, Answerer]],
        admission: Admission,
        signed_keys: Callable[[], bytes],
        signed_live: Callable[[], bytes],
        clock: Callable[[], float],
    ) -> None:
        """
        donor_id: this peer's raw peer id bytes. models: by artifact, as offered at the moment.
        signed_keys, signed_live: the current envelopes, for those whose own are out of date.
        clock: seconds, steady; the same that `key_ring` and `epochs` are asked with elsewhere.
        """
        self.statistics = Statistics()
        self._network = network
        self._donor_id = donor_id
        self._key_ring = key_ring
        self._epochs = epochs
        self._models = models
        self.admission = admission
        self._signed_keys = signed_keys
        self._signed_live = signed_live
        self._clock = clock
        self._running = Running()

    async def finish(self) -> None:
        """Turn new requests away with `finishing`, and let the answers that run come to their end;
        those that do not are ended with it too (`Running.finish`).
        """
        await self._running.finish()

    async def handle(self, stream: PeerStream) -> None:
        """Serve one inbound stream; raises nothing, whatever requester and model do."""
        exchange = Exchange(DONOR, trio.current_time())
        try:
            await self._admit(stream, exchange)
            if exchange.state is State.LOST:
                await stream.reset()
        finally:
            exchange.on(Input.CANCEL, trio.current_time())  # this peer stops, or it had ended
            self.statistics.count(exchange.state)

    async def _admit(self, stream: PeerStream, exchange: Exchange) -> None:
        try:
            place = self.admission.open_nowait(stream.remote_ip, trio.current_time())
        except DonorBusy as busy:
            await self._refuse(stream, exchange, busy)
            return
        try:
            await self._serve(stream, exchange, place)
        finally:
            place.release()

    async def _serve(self, stream: PeerStream, exchange: Exchange, place: Place) -> None:
        try:
            sealed = await self._read_request(stream, exchange, place)
            if sealed is None:
                return
            request, sealer = self._open(sealed, place)
        except tuple(REFUSALS.values()) as error:
            await self._refuse(stream, exchange, error)
            return
        del sealed  # up to 4 MiB, not needed while the answer runs
        exchange.on(Input.REQUEST, trio.current_time())
        answer = _Answer(stream, exchange, sealer)
        self.statistics.n_answering += 1
        try:
            with self._running.answer(answer.generating.cancel):
                await self._answer(answer, place, request)
        finally:
            self.statistics.n_answering -= 1

    # ------------------------------------------------------------ the request

    async def _read_request(
        self, stream: PeerStream, exchange: Exchange, place: Place
    ) -> bytes | None:
        """The sealed frame; None when the requester went away or took too long. Raises
        `RequestTooBig` or `DonorBusy`.
        """
        what: Input | Limit = Limit.REQUEST
        with trio.move_on_at(exchange.due_at(Limit.REQUEST)):
            try:
                return await _receive_request(stream, place)
            except STREAM_GONE:
                what = Input.GONE
        exchange.on(what, trio.current_time())
        return None

    def _open(self, sealed: bytes, place: Place) -> tuple[RequestMap, AnswerSealer]:
        """Everything that is checked before an answer can be sealed. Raises one of `REFUSALS`."""
        now = self._clock()
        opened = open_request(sealed, self._key_ring, self._donor_id, self._network, now)
        request = decode_request(opened.payload)
        sealer = AnswerSealer(request.resp_secret, request.reply_key, opened.digest)
        self._epochs.accept(request.epoch, opened.enc, now)
        # A hedge is meant for a slot that is idle: nobody has to go for it.
        place.queue_nowait(
            trio.current_time(), artifact=request.artifact, may_shed=not request.hedge
        )
        return request, sealer

    async def _refuse(self, stream: PeerStream, exchange: Exchange, no: TokenplaceError) -> None:
        """Say no in clear: there is no key to seal with, or it is not worth the work."""
        exchange.on(Input.REFUSED, trio.current_time())
        refusal = Refusal(no)
        # A donor that was restarted has a new key and a new epoch: who is told of one needs both.
        if no.code in (ErrorCode.UNKNOWN_KEY, ErrorCode.STALE_EPOCH):
            refusal = Refusal(no, self._signed_keys(), self._signed_live())
        await _send(stream, exchange, encode_refusal(refusal, grease.DICE), is_end=True)

    # ------------------------------------------------------------ the answer

    async def _answer(self, answer: _Answer, place: Place, opened: RequestMap) -> None:
        async with trio.open_nursery() as nursery:
            watching = trio.CancelScope()
            nursery.start_soon(answer.watch, watching, nursery.cancel_scope)
            nursery.start_soon(self._generate, answer, place, opened)
            if await answer.write():
                watching.cancel()  # and the model may come to its own end
            else:
                nursery.cancel_scope.cancel()

    async def _generate(self, answer: _Answer, place: Place, opened: RequestMap) -> None:
        """Let the model work into the answer. Every way it can fail becomes an error frame."""
        error: TokenplaceError = DonorInternalError("the answer has no end")
        what: Input | Limit = Input.ERROR
        try:
            request = to_request(opened, place.bucket)
            answer.exchange.expect(request)
            model = self._find_model(request)
            place.on_shed = answer.shed
            with answer.generating:
                await work(model, request, answer.put, place, self.statistics)
            if answer.generating.cancelled_caught:
                error = answer.busy or DonorFinishing()
                if trio.current_time() >= answer.generating.deadline:
                    what, error = Limit.WHOLE, DeadlineExceeded()
        except TokenplaceError as failure:
            error = failure
            if failure.code not in DONOR_ERRORS:
                _log_failure(failure)
        # The one seam behind which anything may be raised: an engine of any kind. The requester is
        # told `internal`; the text of the exception may quote a prompt, so it is not even logged.
        except Exception as failure:
            error = DonorInternalError()
            _log_failure(failure)
        answer.fail(error, what)

    def _find_model(self, request: Request) -> Answerer:
        if self._running.is_finishing:
            raise DonorFinishing
        try:
            return self._models()[request.artifact]
        except KeyError:
            raise ModelNotOffered from None


async def _receive_request(stream: PeerStream, place: Place) -> bytes:
    """The frame without its length. Raises `RequestTooBig` and `DonorBusy`, and what a stream that
    is gone raises.
    """
    (length,) = FRAME_LENGTH.unpack(await receive_exactly(stream, FRAME_LENGTH.size))
    if length > defaults.MAX_REQUEST_FRAME_BYTES:
        raise RequestTooBig
    received = bytearray(await receive_exactly(stream, min(length, defaults.SMALL_REQUEST_BYTES)))
    while len(received) < length:
        n_bytes = min(defaults.READ_BYTES, length - len(received))
        place.hold(n_bytes, trio.current_time())
        received += await receive_exactly(stream, n_bytes)
    return bytes(received)


class _Answer:
    """What the tasks of one exchange share: frames go in, and leave sealed when they are due.

    generating: the model works in it; cancelled when it has to end. busy: why, if it was shed.
    """

    def __init__(self, stream: PeerStream, exchange: Exchange, sealer: AnswerSealer) -> None:
        self.exchange = exchange
        self.generating = trio.CancelScope(deadline=exchange.due_at(Limit.WHOLE))
        self.busy: DonorBusy | None = None
        self._stream = stream
        self._sealer = sealer
        self._outbox = Outbox(trio.current_time())
        self._is_due_earlier = trio.Event()

    def put(self, frame: Frame) -> None:
        """Never waits: what a requester does not read is bounded by `WRITE_TIMEOUT_S`."""
        self.exchange.take(frame, trio.current_time())
        self._post(frame)

    def shed(self, busy: DonorBusy) -> None:
        """It has to make room for somebody else, before the model has begun with it."""
        self.busy = busy
        self.generating.cancel()

    def fail(self, error: TokenplaceError, what: Input | Limit) -> None:
        """End with an error because of `what`, unless the answer has its end already."""
        if self.exchange.can(what):
            self.exchange.on(what, trio.current_time())
            self._post(error)

    def _post(self, frame: Frame) -> None:
        due_at = self._outbox.due_at
        self._outbox.put(frame, trio.current_time())
        if self._outbox.due_at < due_at:
            self._is_due_earlier.set()

    async def write(self) -> bool:
        """Send chunks as they fall due. False when the requester is gone or does not read."""
        opening = self._sealer.opening
        while True:
            await self._wait_due()
            frames, is_final = self._outbox.take(trio.current_time())
            frames = grease.grease_chunk(frames, grease.DICE, is_final=is_final)
            chunk = opening + self._sealer.seal(frames, is_final=is_final)
            opening = b""
            is_sent = await _send(self._stream, self.exchange, chunk, is_end=is_final)
            if is_final or not is_sent:
                return is_sent

    async def watch(self, watching: trio.CancelScope, serving: trio.CancelScope) -> None:
        """Wait for anything from the requester: its end, a reset, or bytes. Each cancels."""
        with watching:
            what = Input.GONE
            try:
                if await self._stream.receive_some(1):
                    what = Input.BYTES
            except STREAM_GONE:
                pass
            self.exchange.on(what, trio.current_time())
            serving.cancel()

    async def _wait_due(self) -> None:
        while self._outbox.due_at > trio.current_time():
            self._is_due_earlier = trio.Event()
            with trio.move_on_at(self._outbox.due_at):
                await self._is_due_earlier.wait()


async def _send(stream: PeerStream, exchange: Exchange, data: bytes, *, is_end: bool) -> bool:
    """False when the requester is gone, or has not read in time. is_end: our half ends with it."""
    if exchange.is_ended:
        return False
    exchange.touch(trio.current_time())
    what: Input | Limit = Limit.WRITE
    with trio.move_on_at(exchange.due_at(Limit.WRITE)):
        try:
            await stream.send_all(data)
        except STREAM_GONE:
            what = Input.GONE
        else:
            if is_end:
                with contextlib.suppress(*STREAM_GONE):  # who has read a refusal resets the stream
                    await stream.send_eof()
                exchange.on(Input.END, trio.current_time())
            return True
    exchange.on(what, trio.current_time())
    return False


def _log_failure(error: Exception) -> None:
    """The kind of error and where it was raised, never its text."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    log.error("generating failed: %s at %s:%s", type(error).__name__, place.filename, place.lineno)
