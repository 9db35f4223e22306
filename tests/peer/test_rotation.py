"""Keys that follow one another, as donor and requester live through it; and what the donor
remembers of requests meanwhile.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable

import pytest
import trio
from trio.testing import MockClock

from tests.dht.donating import TINY_MODEL as OFFERED
from tests.dht.donating import identity_of
from tests.peer.exchange_lab import BOB_ID, NETWORK, Lab, make_request, read_all, text_of
from tests.sealing import forge
from tests.sealing.clocks import Machine
from tokenplace import defaults
from tokenplace.dht.announce import Announcer, open_announcer
from tokenplace.dht.kad import Kad
from tokenplace.errors import ErrorCode, UnknownKey
from tokenplace.peer import grease
from tokenplace.peer.adverts import DonorState, Load, verify_keys, verify_offer
from tokenplace.peer.refusal import Refusal, decode_refusal
from tokenplace.peer.requester import SealTarget
from tokenplace.peer.wire import FRAME_LENGTH
from tokenplace.sealing.clock import ElapsedClock
from tokenplace.sealing.keys import KeyRing
from tokenplace.sealing.request import seal_request
from tokenplace.sealing.suites import PublicKey, best_key

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
ALICE = identity_of("alice")


async def refusal_of(lab: Lab, sealed: bytes) -> Refusal:
    stream = await lab.open_stream()
    await stream.send_all(FRAME_LENGTH.pack(len(sealed)) + sealed)
    return decode_refusal((await read_all(stream))[3:])


def n_remembered(lab: Lab) -> int:
    return sum(len(epoch.seen) for epoch in lab.epochs._epochs.values())


# ---------------------------------------------------------------- the exchange


async def test_yesterdays_key_still_serves_and_the_day_befores_is_renewed(
    autojump_clock: MockClock,
) -> None:
    async with Lab().running() as lab:
        old = lab.target().key
        n_renewed = 0

        async def renew(keys: bytes | None, live: bytes | None) -> SealTarget:
            nonlocal n_renewed
            n_renewed += 1
            return lab.target()

        await trio.sleep(2 * DAY_S - 1)
        assert lab.target().key != old
        yesterdays = lab.remote(SealTarget(old, lab.target().epoch), renew)
        assert text_of(await lab.ask(make_request("still"), yesterdays)) == b"still"
        assert n_renewed == 0
        await trio.sleep(1)
        remote = lab.remote(SealTarget(old, lab.target().epoch), renew)
        assert text_of(await lab.ask(make_request("again"), remote)) == b"again"
        assert n_renewed == 1
        with pytest.raises(UnknownKey):
            await lab.ask(make_request(), lab.remote(SealTarget(old, lab.target().epoch)))


async def test_a_recorded_request_can_be_opened_by_nobody_two_days_later(
    autojump_clock: MockClock,
) -> None:
    async with Lab().running() as lab:
        frame, _ = lab.seal_request(make_request("a secret"))
        await trio.sleep(2 * DAY_S)
        refusal = await refusal_of(lab, frame[FRAME_LENGTH.size :])
        assert refusal.error.code is ErrorCode.UNKNOWN_KEY
        assert refusal.keys
        assert refusal.live


async def test_a_request_sealed_to_the_weaker_half_of_the_key_is_refused() -> None:
    ring = KeyRing(lambda: forge.DONOR_KEY, first_id=forge.KEY_ID)
    async with Lab(key_ring=ring).running() as lab:
        assert lab.target().key.id == forge.KEY_ID  # it is made now
        head = forge.header(kem=forge.X25519_KEM)
        info = forge.request_info(head, NETWORK, BOB_ID)
        _, half = forge.library_keys(forge.DONOR_SEEDS)
        plaintext = forge.pad(b"\x80")
        weak = head + forge.WEAK_SUITE.encrypt(plaintext, half.public_key(), info=info)
        refusal = await refusal_of(lab, weak)
        assert refusal.error.code is ErrorCode.BAD_FORMAT
        assert (refusal.keys, refusal.live) == (None, None)


async def test_grease_is_in_requests_and_answers_and_nobody_notices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = []

    def draw_pair(dice: random.Random) -> tuple[str, object]:
        drawn.append(real_draw_pair(dice))
        return drawn[-1]

    real_draw_pair = grease.draw_pair
    monkeypatch.setattr(grease, "draw_pair", draw_pair)
    monkeypatch.setattr(defaults, "GREASED_CHUNKS", 1)
    async with Lab().running() as lab:
        for _ in range(20):
            drawn.clear()
            assert text_of(await lab.ask(make_request("one two three"))) == b"one two three"
            assert len(drawn) >= 3  # the request's, and those of the first and the last chunk


async def test_a_flood_of_garbage_leaves_room_to_remember_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "MAX_SEEN_PER_EPOCH", 1)
    async with Lab().running() as lab:
        key = lab.target().key
        sealed, _ = lab.seal_request(make_request())
        garbage = [
            os.urandom(3000),  # of no format
            sealed[4:-1] + bytes([sealed[-1] ^ 1]),  # does not open
            seal_request(b"no map", key, BOB_ID, NETWORK),
            seal_request(b"\x80", key, BOB_ID, NETWORK),  # a map without keys
        ]
        for _ in range(5):
            for one in garbage:
                code = (await refusal_of(lab, one)).error.code
                assert code in (ErrorCode.BAD_FORMAT, ErrorCode.UNKNOWN_KEY)
        assert n_remembered(lab) == 0
        assert text_of(await lab.ask(make_request("real"))) == b"real"
        assert n_remembered(lab) == 1


# ---------------------------------------------------------------- what is signed


class Laptop:
    """A donor's machine, its ring of keys, and what it signs."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.clock = ElapsedClock(lambda: self.machine.steady, lambda: self.machine.wall)
        self.ring = KeyRing()
        self.announcer = Announcer(
            ALICE,
            NETWORK,
            addrs=lambda: ["/ip4/203.0.113.7/tcp/4010"],
            models=lambda: [OFFERED],
            public_keys=lambda: self.ring.advertised(self.clock()),
            load=lambda: Load(DonorState.ACCEPTING, 0, 0.0, 0.0),
            epoch=lambda: bytes(8),
            now=lambda: self.machine.wall,
        )

    def advertised(self) -> tuple[PublicKey, int, int]:
        """The key that others seal to now, and from when to when the statement is valid."""
        envelope, now = self.announcer.signed_keys(), self.machine.wall
        keys = verify_keys(envelope, peer_id=ALICE.peer_id, network=NETWORK, now=now)
        offer = verify_offer(
            self.announcer.signed_offer(), peer_id=ALICE.peer_id, network=NETWORK, now=now
        )
        assert offer.keys_hash == hashlib.sha256(envelope).digest()
        key = best_key(keys.keys)
        assert key is not None
        return key, keys.not_before, keys.expires_at

    def opens(self, key: PublicKey) -> bool:
        try:
            return self.ring.private_key(key.id, self.clock()).public == key.public
        except UnknownKey:
            return False


def test_a_statement_ends_when_its_key_is_dropped_and_not_before() -> None:
    laptop = Laptop()
    start = laptop.machine.wall
    for _ in range(72):
        key, _, expires_at = laptop.advertised()
        made_at = start + (laptop.machine.wall - start) // DAY_S * DAY_S
        assert expires_at + defaults.CLOCK_SKEW_S == made_at + 2 * DAY_S
        assert laptop.opens(key)
        laptop.machine.run(HOUR_S)


def test_a_key_of_before_a_long_sleep_is_neither_kept_nor_said() -> None:
    laptop = Laptop()
    old, _, expires_at = laptop.advertised()
    laptop.machine.sleep(3 * DAY_S)
    assert not laptop.opens(old)
    new, _, _ = laptop.advertised()
    assert new != old
    assert expires_at + defaults.CLOCK_SKEW_S < laptop.machine.wall


@pytest.mark.parametrize("step_s", [-400 * DAY_S, -HOUR_S, HOUR_S, 400 * DAY_S])
def test_whatever_the_wall_clock_does_keys_end_and_statements_hold(step_s: float) -> None:
    laptop = Laptop()
    old, _, _ = laptop.advertised()
    laptop.machine.set_clock(step_s)
    key, not_before, expires_at = laptop.advertised()  # by the new time
    assert 0 < expires_at - not_before <= 2 * DAY_S
    laptop.machine.run(expires_at + defaults.CLOCK_SKEW_S - laptop.machine.wall - 1)
    assert laptop.opens(key)
    laptop.machine.run(2 * DAY_S)
    assert not laptop.opens(key)
    assert not laptop.opens(old)


class LonelyKad(Kad):
    """A DHT of one, in which nothing can be announced."""

    def __init__(self) -> None:
        pass

    def n_peers(self) -> int:
        return 0

    async def withdraw(self, keys: Iterable[bytes]) -> None:
        pass


async def test_a_key_is_dropped_in_time_though_nobody_asks(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "ROTATE_KEY_S", 30)
    monkeypatch.setattr(defaults, "PRIVATE_KEY_LIFETIME_S", 60)
    monkeypatch.setattr(defaults, "CLOCK_SKEW_S", 1)
    laptop = Laptop()
    announcer = laptop.announcer
    announcer.models = list  # offers nothing, so nobody asks for its statements either
    announcer.public_keys = lambda: laptop.ring.advertised(trio.current_time())
    async with open_announcer(announcer, LonelyKad()):
        await trio.sleep(0.5)
        (first,) = laptop.ring._held.values()
        await trio.sleep(61)
        assert first not in laptop.ring._held.values()
        assert len(laptop.ring._held) <= 2
