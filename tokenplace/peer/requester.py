"""The requester's side of an exchange: a donor somewhere else, seen as an `Answerer`. Start at
`RemoteDonor`.

Order and deadlines are `exchange.REQUESTER`'s. One task reads, checks and buffers, so that the
donor is always drained: a slow app never slows a donor. What is buffered is bounded by what the
donor promised (`exchange.Exchange`).

Differs from other generators, which run under `trio.as_safe_channel`: the reading task hands events
straight to the consumer, which saves a task switch for each; leaving the block early cancels all
the same, and errors come out bare.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
import trio.abc

from tokenplace import defaults
from tokenplace.errors import (
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    DonorSilent,
    PromptMismatch,
    RemoteProtocolError,
    StaleEpoch,
    TokenplaceError,
    UnknownKey,
)
from tokenplace.generation import Accepted, Alive, Event, GenerateRequest
from tokenplace.operations import (
    CountRequest,
    Embeddings,
    EmbedRequest,
    Question,
    Reply,
    Request,
    ScoreRequest,
    Scores,
)
from tokenplace.peer import grease
from tokenplace.peer.exchange import REQUESTER, Exchange, Input, Limit, State
from tokenplace.peer.frames import Frame, decode_frames
from tokenplace.peer.refusal import Refusal, decode_refusal
from tokenplace.peer.streams import STREAM_GONE, OpenStream, PeerStream
from tokenplace.peer.whole import Answered, Part, Taken
from tokenplace.peer.wire import FRAME_LENGTH, encode_request
from tokenplace.sealing.answer import AnswerOpener, Chunk, RefusalBytes, ReplySecrets
from tokenplace.sealing.request import request_digest, seal_request
from tokenplace.sealing.suites import PublicKey


@dataclass(frozen=True, slots=True)
class SealTarget:
    """What a request is sealed to: a donor's key, and the epoch out of its `live`."""

    key: PublicKey
    epoch: bytes


Renew = Callable[[bytes | None, bytes | None], Awaitable[SealTarget | None]]
"""Verifies the signed keys and live of a refusal; None when they do not verify or are not newer."""


class RemoteDonor:
    """An `Answerer` at the other end of a stream."""

    def __init__(
        self,
        *,
        peer_id: str,
        donor_id: bytes,
        open_stream: OpenStream,
        target: SealTarget,
        network: str,
        renew: Renew,
    ) -> None:
        """peer_id, donor_id: the same, as text for people and as raw bytes for the seal."""
        self._peer_id = peer_id
        self._donor_id = donor_id
        self._open_stream = open_stream
        self._target = target
        self._network = network
        self._renew = renew

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Event]]:
        """Ask the donor. Raises from the iteration what the donor said (`DONOR_ERRORS`), or
        `ConnectFailed`, `ConnectionLost`, `DonorSilent`, `DeadlineExceeded`,
        `RemoteProtocolError` or, when resuming, `PromptMismatch`, after all that came before it.
        """
        async with self._asking(request, Exchange(REQUESTER, trio.current_time())) as inbox:
            yield inbox

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """See `Operator`. Raises as `generate`, but `PromptMismatch`; so do `count` and `score`."""
        reply = await self._answer_to(request)
        assert isinstance(reply, Embeddings), "the exchange has checked it"
        return dataclasses.replace(reply, donor=self._peer_id)

    async def count(self, request: CountRequest) -> int:
        """See `Operator`."""
        reply = await self._answer_to(request)
        assert isinstance(reply, int), "the exchange has checked it"
        return reply

    async def score(self, request: ScoreRequest) -> Scores:
        """See `Operator`."""
        reply = await self._answer_to(request)
        assert isinstance(reply, Scores), "the exchange has checked it"
        return reply

    async def _answer_to(self, question: Question) -> Reply | None:
        exchange = Exchange(REQUESTER, trio.current_time())
        async with self._asking(question, exchange) as inbox:
            async for _ in inbox:  # signs of life; the exchange puts the answer together
                pass
        return exchange.reply

    @asynccontextmanager
    async def _asking(self, request: Request, exchange: Exchange) -> AsyncIterator[Inbox]:
        inbox = Inbox()
        failure: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask, request, exchange, inbox, nursery)
                try:
                    yield inbox
                # Raised again below: out of the nursery it would come wrapped in a group.
                except BaseException as error:
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            inbox.close()
            if failure is not None:
                raise failure

    async def _ask(
        self, request: Request, exchange: Exchange, inbox: Inbox, nursery: trio.Nursery
    ) -> None:
        exchange.expect(request)
        try:
            refusal = await self._attempt(request, exchange, inbox, nursery)
            if exchange.state is State.RENEWING:
                assert refusal is not None, "renewing without a refusal"
                await self._renew_target(refusal, exchange)
            if exchange.state is State.REOPENING:
                refusal = await self._attempt(request, exchange, inbox, nursery)
            if refusal is not None:
                raise refusal.error
        except TokenplaceError as error:
            inbox.end(error)
        else:
            inbox.end(None)
        finally:
            exchange.on(Input.CANCEL, trio.current_time())  # the app has left, or it had ended

    async def _renew_target(self, refusal: Refusal, exchange: Exchange) -> None:
        """After a refusal that newer signed objects can mend: is there something new to seal to?"""
        what: Input | Limit = Limit.RENEW
        with trio.move_on_at(exchange.due_at(Limit.RENEW)):
            target = await self._renew(refusal.keys, refusal.live)
            what = Input.NOT_RENEWED
            if target is not None:
                self._target = target
                what = Input.RENEWED
        exchange.on(what, trio.current_time())

    async def _attempt(
        self, request: Request, exchange: Exchange, inbox: Inbox, nursery: trio.Nursery
    ) -> Refusal | None:
        """One sealed request on a new stream, and its answer. None when the answer was whole."""
        try:
            reply = ReplySecrets.generate()
            sealed = self._seal(request, reply)
            stream = await self._connect(exchange)
            exchange.on(Input.OPENED, trio.current_time())
            is_whole = False
            try:
                opener = AnswerOpener(reply, request_digest(sealed))
                answer = _Answer(exchange, opener, self._peer_id)
                # Beside the reading: a donor may refuse before it has read everything.
                frame = FRAME_LENGTH.pack(len(sealed)) + sealed
                nursery.start_soon(answer.send_request, stream, frame)
                refusal = await answer.read(stream, inbox)
                is_whole = refusal is None
                return refusal
            finally:  # also when the app has left: both run even while being cancelled
                await (stream.aclose() if is_whole else stream.reset())
        except TokenplaceError as error:
            exchange.on(_input_of(error), trio.current_time())
            raise

    def _seal(self, request: Request, reply: ReplySecrets) -> bytes:
        payload = encode_request(
            request, self._target.epoch, reply.resp_secret, reply.key.public, grease.DICE
        )
        return seal_request(payload, self._target.key, self._donor_id, self._network)

    async def _connect(self, exchange: Exchange) -> PeerStream:
        with trio.move_on_at(exchange.due_at(Limit.CONNECT)):
            return await self._open_stream()
        raise _passed(Limit.CONNECT, exchange)


class _Answer:
    """One answer being read."""

    def __init__(self, exchange: Exchange, opener: AnswerOpener, donor: str) -> None:
        self._exchange = exchange
        self._opener = opener
        self._donor = donor
        self._scope = trio.CancelScope()

    async def send_request(self, stream: PeerStream, frame: bytes) -> None:
        try:
            await stream.send_all(frame)
        except STREAM_GONE:
            return  # why is found by who reads
        if not self._exchange.is_ended:
            self._exchange.touch(trio.current_time())  # the donor can only speak from now on
            self._set_deadline()

    async def read(self, stream: PeerStream, inbox: Inbox) -> Refusal | None:
        """Hand events on until the answer is whole, or refused. Raises what ended it otherwise."""
        self._set_deadline()
        with self._scope:  # one for the whole answer, moved with each read: cheaper than one a read
            while True:
                data = await _receive(stream)
                now = trio.current_time()
                if data:
                    self._exchange.touch(now)
                    self._opener.receive_data(data)
                else:
                    self._opener.receive_eof()
                while (item := self._opener.next_item()) is not None:
                    if isinstance(item, RefusalBytes):
                        return self._take_refusal(item, now)
                    self._take_chunk(item, inbox, now)
                if not data:
                    return None
                self._set_deadline()
        raise _passed(self._exchange.next_limit(), self._exchange)

    def _set_deadline(self) -> None:
        self._scope.deadline = self._exchange.due_at(self._exchange.next_limit())

    def _take_refusal(self, item: RefusalBytes, now: float) -> Refusal:
        refusal = decode_refusal(item.payload)
        is_outdated = isinstance(refusal.error, (UnknownKey, StaleEpoch))
        self._exchange.on(Input.OUTDATED if is_outdated else Input.REFUSED, now)
        return refusal

    def _take_chunk(self, chunk: Chunk, inbox: Inbox, now: float) -> None:
        frames = decode_frames(chunk.frames)
        self._exchange.take_chunk(frames, now, is_final=chunk.is_final)
        for frame in frames:
            self._hand_on(frame, inbox)

    def _hand_on(self, frame: Frame, inbox: Inbox) -> None:
        match frame:
            case TokenplaceError():
                raise frame
            case Accepted():
                inbox.put(dataclasses.replace(frame, donor=self._donor))
            case Taken() | Part() | Answered():
                pass  # the exchange has taken it in
            case _:
                inbox.put(frame)


async def _receive(stream: PeerStream) -> bytes:
    try:
        return await stream.receive_some(defaults.READ_BYTES)
    except STREAM_GONE:
        raise ConnectionLost from None


def _passed(limit: Limit, exchange: Exchange) -> TokenplaceError:
    """A limit has passed: what that is to the app."""
    exchange.on(limit, trio.current_time())
    match limit:
        case Limit.CONNECT:
            return ConnectFailed(f"it took over {limit.seconds():g} s.")
        case Limit.IDLE:
            return DonorSilent(f"nothing came for {limit.seconds():g} s.")
        case Limit.STILL:
            return DeadlineExceeded("it said that it was alive, but nothing moved.")
        case _:
            return DeadlineExceeded("it was alive, but the answer did not get on.")


def _input_of(error: TokenplaceError) -> Input:
    """What an error is to the table that was raised before the exchange had ended."""
    match error:
        case ConnectFailed():
            return Input.UNREACHABLE
        case ConnectionLost():
            return Input.GONE
        case RemoteProtocolError() | PromptMismatch():
            return Input.WRONG
        case _:
            return Input.UNSENDABLE


class Inbox(trio.abc.ReceiveChannel[Event]):
    """What has come and was not yet taken. Putting in never waits; at the end the error, if any, is
    raised.
    """

    def __init__(self) -> None:
        # No bound of its own: an exchange lets through `max_new` tokens, MAX_ANSWER_BYTES and
        # little else.
        self._sender, self._receiver = trio.open_memory_channel[Event](math.inf)
        self._error: TokenplaceError | None = None

    def put(self, event: Event) -> None:
        # Heartbeats are the one event without a bound; who has something unread does not need them.
        if isinstance(event, Alive) and self._sender.statistics().current_buffer_used:
            return
        self._sender.send_nowait(event)

    def end(self, error: TokenplaceError | None) -> None:
        """Nothing more will come."""
        self._error = error
        self._sender.close()

    def close(self) -> None:
        self._sender.close()
        self._receiver.close()

    async def receive(self) -> Event:
        try:
            return await self._receiver.receive()
        except trio.EndOfChannel:
            if self._error is not None:
                raise self._error from None
            raise

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()
