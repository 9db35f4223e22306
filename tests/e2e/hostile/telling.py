"""Tells lies to requesters over real libp2p, and notes what becomes of each. Start at `tell_all`;
what lies there are is in `lies.py`.

In one process, with the protocol's deadlines shrunk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import pytest
import trio

from tests.e2e.hostile.lies import LiarsEnd, Told
from tests.peer.exchange_lab import NETWORK, TINY_MODEL
from tests.peer.hosts import LOOPBACK
from tokenplace import defaults
from tokenplace.errors import TokenplaceError
from tokenplace.operations import Answerer
from tokenplace.peer.admission import Admission
from tokenplace.peer.donor import Donor
from tokenplace.peer.host import PeerHost, open_host
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.request_map import decode_request
from tokenplace.peer.requester import RemoteDonor, SealTarget
from tokenplace.peer.streams import STREAM_GONE, PeerStream
from tokenplace.peer.wire import GENERATE_PROTOCOL
from tokenplace.sealing.answer import AnswerSealer
from tokenplace.sealing.epochs import Epochs
from tokenplace.sealing.keys import KeyRing
from tokenplace.sealing.request import open_request
from tokenplace.sealing.suites import best_key

AT_ONCE: Final = 20  # lies told at the same time
GIVE_UP_S: Final = 30.0
SHRUNK: Final[dict[str, float]] = {
    "IDLE_TIMEOUT_S": 2.0,
    "ACCEPT_TIMEOUT_S": 4.0,
    "FIRST_TOKEN_GRACE_S": 4.0,
    "PROGRESS_TIMEOUT_S": 4.0,
    "MAX_WAIT_S": 6.0,
    "MAX_EXCHANGE_S": 20.0,
    "MAX_ANSWER_BYTES": 64 << 10,
}


@dataclass
class Outcome:
    """What became of one lie. n_asked: requests that it was told to; error: what the app got.

    is_left: the liar saw its stream end.
    """

    n_asked: int = 0
    error: TokenplaceError | None = None
    is_left: bool = False


@dataclass
class Donors:
    """Every liar, and one honest donor, on a host of theirs; all have the same key."""

    host: PeerHost
    key_ring: KeyRing
    epochs: Epochs

    @property
    def target(self) -> SealTarget:
        now = trio.current_time()
        key = best_key(self.key_ring.advertised(now).keys)
        assert key is not None
        return SealTarget(key, self.epochs.current(now))

    def remote(self, asker: PeerHost, protocol: str) -> RemoteDonor:
        """The donor behind `protocol`, as the asker sees it."""
        return RemoteDonor(
            peer_id=self.host.peer_id,
            donor_id=self.host.identity.peer_id_bytes,
            open_stream=partial(asker.open_stream, self.host.peer_id, protocol, self.host.addrs()),
            target=self.target,
            network=NETWORK,
            renew=self._renew,
        )

    async def _renew(self, keys: bytes | None, live: bytes | None) -> SealTarget:
        """There is always something newer: a liar's seq may rise for ever."""
        return replace(self.target, epoch=self.epochs.current(trio.current_time()))

    def serve(self, told: Told, outcome: Outcome) -> str:
        """Tell a lie to everybody who asks through the protocol returned."""

        async def handle(stream: PeerStream) -> None:
            outcome.n_asked += 1
            try:
                await told.lie(LiarsEnd(stream, self._sealer))
                while await stream.receive_some(1 << 16):
                    pass
            except STREAM_GONE:
                pass
            outcome.is_left = True

        protocol = f"{GENERATE_PROTOCOL}/{told.name}"
        self.host.set_stream_handler(protocol, handle)
        return protocol

    def _sealer(self, sealed: bytes) -> AnswerSealer:
        donor_id, now = self.host.identity.peer_id_bytes, trio.current_time()
        opened = open_request(sealed, self.key_ring, donor_id, NETWORK, now)
        request = decode_request(opened.payload)
        return AnswerSealer(request.resp_secret, request.reply_key, opened.digest)


@asynccontextmanager
async def open_donors(honest_model: Answerer) -> AsyncIterator[Donors]:
    async with open_host(throwaway_identity(), listen=[LOOPBACK]) as host:
        donors = Donors(host, KeyRing(), Epochs())
        honest = Donor(
            network=NETWORK,
            donor_id=host.identity.peer_id_bytes,
            key_ring=donors.key_ring,
            epochs=donors.epochs,
            models=lambda: {TINY_MODEL: honest_model},
            admission=Admission(),
            signed_keys=lambda: b"",
            signed_live=lambda: b"",
            clock=trio.current_time,
        )
        host.set_stream_handler(GENERATE_PROTOCOL, honest.handle)
        yield donors


Ask = Callable[[RemoteDonor], Awaitable[object]]


def tell_all(
    lies: Sequence[Told], honest_model: Answerer, ask: Ask, ask_honestly: Ask
) -> dict[str, Outcome]:
    """Tell every lie to who asks for it, a few at a time, and return what became of each by its
    name; beside them, answers of the honest donor go on one after the other.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in SHRUNK.items():
            patch.setattr(defaults, name, limit)
        return trio.run(_tell_all, lies, honest_model, ask, ask_honestly)


async def _tell_all(
    lies: Sequence[Told], honest_model: Answerer, ask: Ask, ask_honestly: Ask
) -> dict[str, Outcome]:
    outcomes = {told.name: Outcome() for told in lies}
    limit = trio.CapacityLimiter(AT_ONCE)
    async with (
        open_donors(honest_model) as donors,
        open_host(throwaway_identity()) as asker,
        trio.open_nursery() as bystanders,
    ):
        honest = donors.remote(asker, GENERATE_PROTOCOL)
        bystanders.start_soon(_ask_on_and_on, honest, ask_honestly)
        async with trio.open_nursery() as nursery:
            for told in lies:
                outcome = outcomes[told.name]
                remote = donors.remote(asker, donors.serve(told, outcome))
                nursery.start_soon(_ask_liar, remote, outcome, ask, limit)
        bystanders.cancel_scope.cancel()
    return outcomes


async def _ask_liar(
    remote: RemoteDonor, outcome: Outcome, ask: Ask, limit: trio.CapacityLimiter
) -> None:
    async with limit:
        with trio.move_on_after(GIVE_UP_S):
            try:
                await ask(remote)
            except TokenplaceError as error:
                outcome.error = error
            while not outcome.is_left:  # noqa: ASYNC110  # set at the other end of the stream
                await trio.sleep(0.01)


async def _ask_on_and_on(remote: RemoteDonor, ask: Ask) -> None:
    while True:
        with trio.fail_after(GIVE_UP_S):
            await ask(remote)
