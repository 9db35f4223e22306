"""Attacks on one running peer, all in the same half minute, and what becomes of each. Start at
`besiege`.

A few attacks begin, and while they go on a bystander's stream and a newcomer must be served. Then
the next few begin; who is to be cut off only after a deadline stays until then. So all but the
first meet a peer that others attack too.

A twin, which nobody attacks, is asked at the same moments: a busy machine slows both down, an
attack only the one. Nothing is ever measured against the clock alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import trio

from tests.e2e.hostile.attacks import Forge, Target, open_attacker
from tests.e2e.hostile.raw_peer import GONE, RawPeer, RawStream
from tokenplace.errors import TokenplaceError
from tokenplace.peer.host import open_host
from tokenplace.peer.identity import throwaway_identity
from tokenplace.peer.streams import PeerStream

SERVED_WITHIN_S: Final = 1.0  # promised to the bystanders of a peer under attack
TWIN_FACTOR: Final = 4.0  # and as much more as a busy machine needs
AT_ONCE_S: Final = 0.0  # the attacker is cut off as soon as its bytes were read
SLACK_S: Final = 5.0  # on top of every deadline, for a busy machine
FLOOD_S: Final = 0.5  # floods go on while bystanders are asked, not for the rest of the siege
GIVE_UP_S: Final = 30.0
TOGETHER: Final = 4  # attacks that begin at the same time: a siege has two hundred
PING: Final = "/ipfs/ping/1.0.0"
PING_BYTES: Final = 32


class Ending(Enum):
    """How an attacker must end."""

    CONNECTION = "its connection is closed"
    STREAM = "its stream ends"
    NONE = "it is let be"


@dataclass
class Attacker:
    """What attacks work with. What they start in `nursery` ends with the siege.

    forge: makes requests to the victim.
    """

    forge: Forge
    nursery: trio.Nursery
    sockets: list[trio.SocketStream] = field(default_factory=list)

    async def dial(self, source: str = "") -> RawPeer:
        """A TCP connection and no more. source: as in `RawPeer.connect`."""
        peer = await RawPeer.connect(self.forge.target.port, source)
        self.sockets.append(peer.tcp)
        return peer

    def leave(self, peer: RawPeer) -> RawPeer:
        """Say nothing more below yamux; the connection's end will be noticed."""
        self.nursery.start_soon(peer.wait_closed)
        return peer

    async def connect(self, source: str = "") -> RawPeer:
        """A connection with Noise and yamux, its frames being read."""
        peer = await self.dial(source)
        await peer.begin_yamux()
        self.nursery.start_soon(peer.read_frames)
        return peer

    def repeat(self, what: Callable[[], Awaitable[object]], for_s: float = FLOOD_S) -> None:
        """Do it again and again in the background, until cut off or for so long."""
        until = trio.current_time() + for_s

        async def run() -> None:
            # Never cancelled in the middle: half a message would be another attack.
            while trio.current_time() < until:
                await what()

        self.start(run)

    def trickle(
        self, say: Callable[[bytes], Awaitable[object]], data: bytes, pause_s: float
    ) -> None:
        """Say it byte by byte in the background, as far as it gets."""

        async def run() -> None:
            for byte in data:
                await say(bytes([byte]))
                await trio.sleep(pause_s)

        self.start(run)

    def start(self, what: Callable[[], Awaitable[object]]) -> None:
        """Do it in the background, as far as it gets."""

        async def run() -> None:
            with suppress(*GONE):
                await what()

        self.nursery.start_soon(run)


Besieger = RawPeer | RawStream
"""What must end or go on: a connection or a stream."""


@dataclass(frozen=True)
class Attack:
    """One row of a table.

    begin: returns once everything was said that is said at once. within_s: the documented time in
    which the attacker must have ended.
    """

    name: str
    begin: Callable[[Attacker], Awaitable[Besieger]]
    ends: Ending
    within_s: float = AT_ONCE_S


@dataclass
class Outcome:
    """What became of one attack. trouble: what was met that no table allows.

    served_s, twin_served_s: how long bystanders waited meanwhile, and those of the twin.
    """

    ended: Ending | None = None
    trouble: str = ""
    served_s: float = GIVE_UP_S
    twin_served_s: float = 0.0

    @property
    def is_served(self) -> bool:
        """Did bystanders wait no longer than is promised?"""
        return self.served_s <= SERVED_WITHIN_S + TWIN_FACTOR * self.twin_served_s


async def besiege(victim: Target, twin: Target, attacks: Sequence[Attack]) -> dict[str, Outcome]:
    """Carry out all attacks, those with the longest deadlines first, and say what became of each.

    Both are donors.
    """
    outcomes = {attack.name: Outcome() for attack in attacks}
    assert len(outcomes) == len(attacks), "two attacks of one name"
    async with (
        open_attacker(victim) as host,
        open_bystander(victim) as bystander,
        open_bystander(twin) as twins_bystander,
        trio.open_nursery() as nursery,
    ):
        attacker = Attacker(await Forge.of(host, victim), nursery)
        try:
            async with trio.open_nursery() as endings:
                slowest_first = sorted(attacks, key=lambda attack: -attack.within_s)
                for start in range(0, len(attacks), TOGETHER):
                    batch = [(a, outcomes[a.name]) for a in slowest_first[start : start + TOGETHER]]
                    async with trio.open_nursery() as beginnings:
                        for attack, outcome in batch:
                            beginnings.start_soon(_begin, attack, attacker, outcome, endings)
                    await _measure([outcome for _, outcome in batch], bystander, twins_bystander)
            nursery.cancel_scope.cancel()
        finally:
            for tcp in attacker.sockets:
                tcp.socket.close()  # `aclose` would see that the nursery is cancelled
    return outcomes


async def _begin(
    attack: Attack, attacker: Attacker, outcome: Outcome, endings: trio.Nursery
) -> None:
    try:
        with trio.fail_after(GIVE_UP_S):
            target = await attack.begin(attacker)
    except (*GONE, trio.TooSlowError, AssertionError) as error:
        outcome.trouble = f"the attack itself: {error!r}"
    else:
        endings.start_soon(_wait_ending, attack, target, outcome)


async def _measure(outcomes: Sequence[Outcome], *bystanders: Bystander) -> None:
    """How long each bystander waits, both at the same moment."""
    waited_s = [GIVE_UP_S, GIVE_UP_S]

    async def ask(index: int) -> None:
        started_at = trio.current_time()
        with trio.move_on_after(GIVE_UP_S):
            try:
                await bystanders[index].ask()
            except (TokenplaceError, trio.BrokenResourceError, AssertionError) as error:
                for outcome in outcomes:
                    outcome.trouble = f"a bystander is not served: {error!r}"
            else:
                waited_s[index] = trio.current_time() - started_at

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 0)
        nursery.start_soon(ask, 1)
    for outcome in outcomes:
        outcome.served_s, outcome.twin_served_s = waited_s


async def _wait_ending(attack: Attack, target: Besieger, outcome: Outcome) -> None:
    peer = target.peer if isinstance(target, RawStream) else target
    if attack.ends is not Ending.NONE:
        with trio.move_on_after(attack.within_s + SLACK_S):
            await target.ended.wait()
    else:
        with trio.move_on_after(FLOOD_S + SLACK_S), suppress(*GONE):
            await trio.sleep(FLOOD_S)
            await peer.ping()  # so everything that was sent before has been read
    if peer.ended.is_set():
        outcome.ended = Ending.CONNECTION
    elif target.ended.is_set():
        outcome.ended = Ending.STREAM
    else:
        outcome.ended = Ending.NONE
    try:
        if isinstance(target, RawStream) and target.check is not None:
            target.check(bytes(target.data))
    except (AssertionError, TokenplaceError) as error:
        outcome.trouble = f"another answer: {error!r}"
    peer.tcp.socket.close()


@dataclass
class Bystander:
    """Who uses a peer while others attack it: one that was there before, and newcomers."""

    target: Target
    stream: PeerStream
    nursery: trio.Nursery
    lock: trio.Lock = field(default_factory=trio.Lock)

    async def ask(self) -> None:
        """The one is answered on its old stream, then a new one connects and is answered."""
        await self._ping()
        # Who leaves takes its time, which nobody waits for.
        failure = await self.nursery.start(self._visit)
        if failure is not None:
            raise failure

    async def read_on(self) -> None:
        """Use the stream for ever, about once a second."""
        while True:
            await self._ping()
            await trio.sleep(1)

    async def _ping(self) -> None:
        async with self.lock:
            await self.stream.send_all(bytes(PING_BYTES))
            n_answered = 0
            while n_answered < PING_BYTES:
                answer = await self.stream.receive_some(PING_BYTES)
                if not answer:
                    raise trio.BrokenResourceError("the stream ended")
                n_answered += len(answer)

    async def _visit(self, task_status: trio.TaskStatus[Exception | None]) -> None:
        async with open_host(throwaway_identity()) as newcomer:
            try:
                await Forge.of(newcomer, self.target)
            except (TokenplaceError, AssertionError) as error:
                task_status.started(error)
            else:
                task_status.started(None)


@asynccontextmanager
async def open_bystander(target: Target) -> AsyncIterator[Bystander]:
    """A peer whose stream is in use until the block exits; it raises when the stream breaks."""
    async with open_host(throwaway_identity()) as host, trio.open_nursery() as nursery:
        stream = await host.open_stream(target.peer_id, PING, target.addrs)
        bystander = Bystander(target, stream, nursery)
        nursery.start_soon(bystander.read_on)
        yield bystander
        nursery.cancel_scope.cancel()
