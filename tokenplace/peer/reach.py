"""Both ends of `/tokenplace/reach/1.0.0` (docs/protocol.md, section 12): can others reach a peer?

Start at `ReachService.ask`. Differs from libp2p's AutoNAT, whose server says "reachable" as soon as
the asker is connected (`host/autonat/autonat.py:396`): here only a nonce counts that arrives over a
connection that somebody else opened; what the answering peer says is an explanation.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from tokenplace import defaults
from tokenplace.errors import (
    ConnectFailed,
    ConnectionLost,
    DonorSilent,
    RemoteProtocolError,
    TokenplaceError,
)
from tokenplace.peer import reach_wire as wire
from tokenplace.peer.buckets import TokenBuckets
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.ranges import block_of, is_loopback
from tokenplace.peer.reach_wire import Answer, DialBack, Outcome, Proof
from tokenplace.peer.streams import STREAM_GONE, PeerStream, receive_exactly

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DialBackResult:
    """What came of asking one peer.

    is_proven: the nonce arrived over an inbound connection. All else is the peer's word. observed:
    this host's IP as the peer sees it. asked_over: the peer's IP. port: asked to be dialled.
    """

    is_proven: bool
    outcome: Outcome
    observed: str
    asked_over: str
    port: int


@dataclass(slots=True)
class _Waiting:
    """A nonce that is out. It is worth nothing in the hands of the very peer that was asked."""

    asked_peer_id: str
    is_proven: bool = False


def _no_news(peer_id: str) -> None:
    """Nobody wants to know."""


@dataclass
class ReachService:
    """Dials back whoever asks, and asks others; one for each host, dial-only ones too.

    on_proved: told the peer id of an asker that turned out to be reachable; must not wait.
    n_dialling: how many are being dialled back now.
    """

    host: PeerHost
    on_proved: Callable[[str], None] = _no_news
    _waiting: dict[bytes, _Waiting] = field(default_factory=dict)
    n_dialling: int = 0
    _dials: TokenBuckets = field(
        default_factory=lambda: TokenBuckets(
            defaults.REACH_DIAL_BURST, 1 / defaults.REACH_DIAL_EVERY_S
        )
    )

    def serve(self) -> None:
        """Answer the questions that reach the host."""
        self.host.set_stream_handler(
            wire.PROTOCOL_ID,
            self.handle,
            max_streams_per_peer=defaults.REACH_STREAMS_PER_PEER,
            max_streams=defaults.REACH_STREAMS,
        )

    # ------------------------------------------------------------ asking

    async def ask(self, peer_id: str, port_for: Callable[[str], int | None]) -> DialBackResult:
        """Have a connected peer dial this host back; takes `REACH_TIMEOUT_S` at most.

        port_for: where this host listens, for a peer of the given IP; None asks nothing.

        Raises `ConnectFailed` (also for a peer that does not speak this protocol), `DonorSilent`,
        `ConnectionLost` or `RemoteProtocolError`.
        """
        nonce = os.urandom(wire.NONCE_BYTES)
        waiting = self._waiting[nonce] = _Waiting(peer_id)
        try:
            with trio.move_on_after(defaults.REACH_TIMEOUT_S):
                stream = await self.host.open_stream(peer_id, wire.PROTOCOL_ID)
                try:
                    port = port_for(stream.remote_ip)
                    if port is None:
                        raise ConnectFailed(f"{peer_id}: no port to be dialled back at")
                    await stream.send_all(wire.encode(DialBack(nonce, port)))
                    answer = wire.decode_answer(await _receive(stream))
                except STREAM_GONE:
                    raise ConnectionLost(f"{peer_id} ended its reach answer early.") from None
                finally:
                    await stream.reset()  # an answer that was read whole loses nothing by it
                return DialBackResult(
                    waiting.is_proven, answer.outcome, answer.observed, stream.remote_ip, port
                )
        finally:
            self._waiting.pop(nonce, None)
        raise DonorSilent(f"{peer_id} did not answer in time.")

    # ------------------------------------------------------------ answering

    async def handle(self, stream: PeerStream) -> None:
        """Answer one stream; one that says nothing sensible in time is reset unanswered."""
        try:
            with trio.fail_after(defaults.REACH_TIMEOUT_S):
                await self._answer(stream)
        except (trio.TooSlowError, *STREAM_GONE, TokenplaceError) as error:
            log.debug("reach question of %s: %s", stream.peer_id, type(error).__name__)
            await stream.reset()

    async def _answer(self, stream: PeerStream) -> None:
        with trio.fail_after(defaults.REACH_READ_TIMEOUT_S):
            question = wire.decode_question(await _receive(stream))
        if not stream.remote_ip:
            raise RemoteProtocolError("reach: the connection has no address")
        if isinstance(question, Proof):
            self._take_proof(stream, question.nonce)
        elif not _can_dial(stream.remote_ip):
            await _say(stream, Outcome.REFUSED)
        elif not self._has_room(stream.remote_ip):
            await _say(stream, Outcome.BUSY)
        else:
            self.n_dialling += 1
            try:
                await self._dial_back(stream, question)
            finally:
                self.n_dialling -= 1

    def _has_room(self, ip: str) -> bool:
        """May this address be dialled now?"""
        if self.n_dialling >= defaults.REACH_DIALS:
            return False
        # Whoever is on this machine can do the same without us.
        return is_loopback(ip) or self._dials.take(block_of(ip), trio.current_time())

    def _take_proof(self, stream: PeerStream, nonce: bytes) -> None:
        """Note a nonce that arrived. Raises `RemoteProtocolError` for one that proves nothing."""
        waiting = self._waiting.get(nonce)
        if waiting is None or not stream.is_inbound or stream.peer_id == waiting.asked_peer_id:
            raise RemoteProtocolError("reach: a nonce that is not out, or came the wrong way")
        del self._waiting[nonce]  # it counts once
        waiting.is_proven = True

    async def _dial_back(self, stream: PeerStream, question: DialBack) -> None:
        """Dial the asker, only where it is seen to be, and tell it how that went.

        A host of its own: no connection that exists already can stand in for the new one, and the
        asker learns no other identity of this peer's.
        """
        ip = ipaddress.ip_address(stream.remote_ip)
        addr = f"/ip{ip.version}/{ip}/tcp/{question.port}"
        async with open_host(throwaway_identity()) as host:
            is_proved = await _deliver(host, stream.peer_id, addr, question.nonce)
            if is_proved:
                self.on_proved(stream.peer_id)
            await _say(stream, Outcome.PROVED if is_proved else Outcome.UNREACHABLE)


async def _deliver(host: PeerHost, peer_id: str, addr: str, nonce: bytes) -> bool:
    """Take the nonce to `peer_id` at `addr`; whether it was read there."""
    with trio.move_on_after(defaults.REACH_DIAL_TIMEOUT_S):
        try:
            stream = await host.open_stream(peer_id, wire.PROTOCOL_ID, [addr])
            try:
                await stream.send_all(wire.encode(Proof(nonce)))
                # The end of the stream says that it was read: the answer must not overtake it.
                return not await stream.receive_some(1)
            finally:
                await stream.reset()
        except (ConnectFailed, *STREAM_GONE) as error:
            log.debug("dialling %s back: %s", peer_id, type(error).__name__)
    return False


async def _say(stream: PeerStream, outcome: Outcome) -> None:
    await stream.send_all(wire.encode(Answer(outcome, stream.remote_ip)))
    await stream.aclose()


async def _receive(stream: PeerStream) -> bytes:
    length = wire.body_length(await receive_exactly(stream, wire.LENGTH.size))
    return await receive_exactly(stream, length)


def _can_dial(ip: str) -> bool:
    """Is this the address of one machine, which means the same to whoever dials it?"""
    address = ipaddress.ip_address(ip)
    return not (address.is_multicast or address.is_unspecified or address.is_link_local)
