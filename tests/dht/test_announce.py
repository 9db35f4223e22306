"""A donor's statements over time, and its place in the DHT."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.dht.donating import NETWORK, NOW, OTHER_MODEL, TINY_MODEL, Donor, identity_of, model_of
from tokenplace import defaults
from tokenplace.dht.announce import Announcer, open_announcer
from tokenplace.dht.kad import Kad
from tokenplace.dht.keys import Kind, keys_to_provide, keys_to_search
from tokenplace.peer.adverts import DonorState, Load, verify_keys, verify_live, verify_offer
from tokenplace.sealing.suites import PublicKey

MIDNIGHT = NOW - NOW % 86400 + 86400


@pytest.fixture
def alice() -> Donor:
    return Donor(identity_of("alice"))


# ---------------------------------------------------------------- statements


@given(steps=st.lists(st.floats(0, 3 * 24 * 3600), max_size=12))
def test_at_any_time_the_statements_are_valid_and_fit_together(steps: list[float]) -> None:
    donor = Donor(identity_of("alice"))
    announcer = donor.announcer()
    floors = [0, 0, 0]
    for step in steps:
        donor.now += step
        own = announcer.own()
        assert own is not None
        assert own.entry.live is not None
        common = {"peer_id": donor.identity.peer_id, "network": NETWORK}
        # By a clock that is right: nothing is handed out at the very end of its life.
        now = donor.now + defaults.CLOCK_SKEW_S
        keys = verify_keys(own.entry.keys, now=now, floor_seq=floors[0], **common)
        offer = verify_offer(own.entry.offer, now=now, floor_seq=floors[1], **common)
        live = verify_live(own.entry.live, now=donor.now, floor_seq=floors[2], **common)
        assert min(keys.expires_at, offer.expires_at) > now
        assert donor.now - live.not_before <= defaults.LIVE_REFRESH_S + 1
        assert offer.models == (TINY_MODEL,)
        floors = [keys.seq, offer.seq, live.seq]


def test_a_statement_is_signed_anew_only_when_it_must_be(alice: Donor) -> None:
    announcer = alice.announcer()
    keys, offer, live = announcer.signed_keys(), announcer.signed_offer(), announcer.signed_live()

    alice.load = Load(DonorState.ACCEPTING, 8, 1.0, 1.0)
    alice.now += defaults.LIVE_REFRESH_S - 1
    assert announcer.signed_live() == live
    alice.now += 1
    newer = announcer.signed_live()
    assert newer != live
    alice.load = Load(DonorState.FINISHING, 8, 1.0, 1.0)
    assert announcer.signed_live() != newer, "said at once"
    assert (announcer.signed_keys(), announcer.signed_offer()) == (keys, offer)

    alice.addrs = ["/ip4/198.51.100.1/tcp/4010"]
    moved = announcer.signed_offer()
    assert moved != offer
    alice.models = [TINY_MODEL, OTHER_MODEL]
    more = announcer.signed_offer()
    assert more != moved
    assert announcer.signed_keys() == keys

    alice.key = PublicKey(2, 0x647A, 1, 3, bytes(1216))
    assert announcer.signed_keys() != keys
    assert announcer.signed_offer() != more  # it names the new keys


def test_a_clock_set_back_does_not_set_numbers_back(alice: Donor) -> None:
    announcer = alice.announcer()
    announcer.signed_live()
    alice.now -= 3600
    live = verify_live(
        announcer.signed_live(), peer_id=alice.identity.peer_id, network=NETWORK, now=alice.now
    )
    assert live.not_before == alice.now
    assert live.seq == int(NOW * 1000) + 1


def test_more_models_than_fit_into_an_offer_are_left_out(
    alice: Donor, caplog: pytest.LogCaptureFixture
) -> None:
    alice.models = [replace(model_of(f"{'m' * 50}-{n}"), profile="p" * 99) for n in range(60)]
    with caplog.at_level(logging.WARNING):
        envelope = alice.announcer().signed_offer()
    offer = verify_offer(envelope, peer_id=alice.identity.peer_id, network=NETWORK, now=NOW)
    assert 16 <= len(offer.models) < defaults.MAX_OFFERED_MODELS
    assert offer.models == tuple(alice.models[: len(offer.models)])
    assert f"room for {len(offer.models)} of 60" in caplog.text


def test_the_offer_names_at_most_eight_addresses_without_the_peer_id(alice: Donor) -> None:
    plain = [f"/ip4/203.0.113.{n}/tcp/4010" for n in range(20)]
    alice.addrs = [f"{addr}/p2p/{alice.identity.peer_id}" for addr in plain]
    offer = verify_offer(
        alice.announcer().signed_offer(), peer_id=alice.identity.peer_id, network=NETWORK, now=NOW
    )
    assert offer.addrs == tuple(plain[: defaults.MAX_ADDRS])


def test_without_models_a_peer_says_nothing_of_itself(alice: Donor) -> None:
    alice.models = []
    assert alice.announcer().own() is None


# ---------------------------------------------------------------- the DHT


class FakeKad(Kad):
    """Counts what is provided; `confirms` is what a provide answers."""

    def __init__(self) -> None:
        self.confirms = 1
        self.n_known = 1
        self.provided: list[tuple[float, bytes]] = []
        self.withdrawn: list[bytes] = []
        self.forgotten: list[bytes] = []

    def n_peers(self) -> int:
        return self.n_known

    async def provide(self, key: bytes) -> int:
        await trio.sleep(0.1)
        self.provided.append((trio.current_time(), key))
        return self.confirms

    def unprovide(self, key: bytes) -> None:
        self.forgotten.append(key)

    async def withdraw(self, keys: Iterable[bytes]) -> None:
        self.withdrawn.extend(keys)

    def provided_since(self, time: float) -> set[bytes]:
        return {key for at, key in self.provided if at > time}


def keys_of(donor: Donor, now: float) -> set[bytes]:
    return set(
        keys_to_provide(
            NETWORK,
            donor.identity.peer_id_bytes,
            [model.name for model in donor.models],
            [model.artifact for model in donor.models],
            now,
        )
    )


@asynccontextmanager
async def open_announced(donor: Donor) -> AsyncIterator[tuple[Announcer, FakeKad]]:
    kad = FakeKad()
    announcer = donor.announcer()
    async with open_announcer(announcer, kad):
        yield announcer, kad


async def test_every_key_is_provided_and_again_in_time(
    alice: Donor, autojump_clock: MockClock
) -> None:
    async with open_announced(alice) as (announcer, kad):
        await trio.sleep(2)
        assert kad.provided_since(0) == keys_of(alice, NOW)
        assert len(kad.provided) == 3
        status = announcer.status()
        assert (status.models, status.n_keys, status.n_confirmed) == ((TINY_MODEL.name,), 3, 3)
        await trio.sleep(defaults.ANNOUNCE_EVERY_S)
        assert kad.provided_since(2) == keys_of(alice, NOW)


async def test_after_a_sleep_in_which_its_records_ended_a_donor_is_announced_at_once(
    alice: Donor, autojump_clock: MockClock
) -> None:
    slept_s = 0.0
    announcer = alice.announcer()
    announcer.clock = lambda: trio.current_time() + slept_s
    kad = FakeKad()
    async with open_announcer(announcer, kad):
        await trio.sleep(2)
        slept_s = 8 * 3600.0
        await trio.sleep(2)
        assert kad.provided_since(2) == keys_of(alice, NOW)


async def test_unconfirmed_keys_are_retried_ever_less_often_until_confirmed(
    alice: Donor, autojump_clock: MockClock
) -> None:
    async with open_announced(alice) as (announcer, kad):
        kad.confirms = 0
        await trio.sleep(600)
        assert announcer.status().n_confirmed == 0
        assert 3 * 8 <= len(kad.provided) <= 3 * 30
        kad.confirms = 1
        await trio.sleep(100)
        assert announcer.status().n_confirmed == 3


async def test_joining_and_moving_announce_at_once(alice: Donor, autojump_clock: MockClock) -> None:
    async with open_announced(alice) as (_, kad):
        kad.n_known = kad.confirms = 0
        await trio.sleep(600)
        kad.n_known = kad.confirms = 1
        await trio.sleep(2)
        assert kad.provided_since(600) == keys_of(alice, NOW)
        alice.addrs = ["/ip4/198.51.100.1/tcp/4010"]
        await trio.sleep(2)
        assert kad.provided_since(602) == keys_of(alice, NOW)


async def test_a_donor_that_nobody_reaches_answers_but_is_not_announced(
    alice: Donor, autojump_clock: MockClock
) -> None:
    addrs, alice.addrs = alice.addrs, []
    async with open_announced(alice) as (announcer, kad):
        await trio.sleep(10)
        assert kad.provided == []
        assert announcer.own() is not None, "who is connected already may ask it"
        alice.addrs = addrs
        await trio.sleep(2)
        assert kad.provided_since(10) == keys_of(alice, NOW)
        alice.addrs = []
        await trio.sleep(2)
        assert set(kad.withdrawn) == keys_of(alice, NOW)


async def test_a_models_coming_and_going_changes_its_keys_alone(
    alice: Donor, autojump_clock: MockClock
) -> None:
    async with open_announced(alice) as (_, kad):
        await trio.sleep(2)
        before = keys_of(alice, NOW)
        alice.models = [OTHER_MODEL]
        after = keys_of(alice, NOW)
        await trio.sleep(2)
        assert kad.provided_since(2) == after - before
        assert set(kad.withdrawn) == before - after


async def test_tomorrows_keys_come_an_hour_early_and_yesterdays_go(
    alice: Donor, autojump_clock: MockClock
) -> None:
    alice.now = MIDNIGHT - 3601
    async with open_announced(alice) as (_, kad):
        await trio.sleep(2)
        today = kad.provided_since(0)
        alice.now = MIDNIGHT - 3599
        await trio.sleep(2)
        tomorrow = kad.provided_since(2)
        assert tomorrow == keys_of(alice, MIDNIGHT)
        alice.now = MIDNIGHT + 1
        await trio.sleep(2)
        assert set(kad.forgotten) == today
        assert not kad.withdrawn, "of yesterday nobody asks: no messages at midnight"
        assert not kad.provided_since(4)
        alice.now = MIDNIGHT + 24 * 3600 - 3599
        await trio.sleep(2)
        assert kad.provided_since(6) == keys_of(alice, alice.now) - tomorrow


async def test_at_every_moment_a_donor_is_found_under_that_days_keys(
    alice: Donor, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over two midnights, while records live as long as servers keep them."""
    monkeypatch.setattr(defaults, "ANNOUNCE_CHECK_S", 30.0)

    def now() -> float:
        return MIDNIGHT - 2 * 3600 + trio.current_time()

    subjects = [
        (Kind.DONORS, ""),
        (Kind.MODEL, TINY_MODEL.name),
        (Kind.ARTIFACT, TINY_MODEL.artifact),
    ]
    async with open_announced(alice) as (announcer, kad):
        announcer.now = now
        await trio.sleep(30)
        for _ in range(28 * 20):
            await trio.sleep(180)
            stored = kad.provided_since(trio.current_time() - defaults.PROVIDER_TTL_S)
            for kind, value in subjects:
                assert stored.intersection(keys_to_search(NETWORK, kind, value, now()))


async def test_what_is_under_way_when_it_is_withdrawn_is_not_announced_after_all(
    alice: Donor, autojump_clock: MockClock
) -> None:
    async with open_announced(alice) as (announcer, kad):
        await trio.sleep(0.05)  # in the middle of the first `provide`
        await announcer.withdraw(kad)
        await trio.sleep(60)
        assert kad.provided == []
        assert announcer.status().n_keys == 0


async def test_who_leaves_the_dht_still_says_that_it_is_finishing(
    alice: Donor, autojump_clock: MockClock
) -> None:
    async with open_announced(alice) as (announcer, kad):
        await trio.sleep(2)
        alice.load = Load(DonorState.FINISHING, 1, 1.0, 1.0)
        await announcer.leave(kad)
        assert set(kad.withdrawn) == keys_of(alice, NOW)
        own = announcer.own()
        assert own is not None
        live = verify_live(
            own.entry.live or b"", peer_id=alice.identity.peer_id, network=NETWORK, now=alice.now
        )
        assert live.load.state is DonorState.FINISHING


async def test_leaving_withdraws_everything(alice: Donor, autojump_clock: MockClock) -> None:
    async with open_announced(alice) as (announcer, kad):
        await trio.sleep(2)
        old = announcer.signed_offer()
    assert set(kad.withdrawn) == keys_of(alice, NOW)
    assert announcer.own() is None
    offer = verify_offer(
        announcer.signed_offer(), peer_id=alice.identity.peer_id, network=NETWORK, now=NOW
    )
    assert offer.models == ()
    assert announcer.signed_offer() != old
