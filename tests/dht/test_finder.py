"""Finding donors over real hosts and a real DHT on loopback; some are dead, some hostile."""

from __future__ import annotations

import pytest
import trio

from tests.dht.donating import (
    NETWORK,
    OTHER_MODEL,
    TINY_MODEL,
    AskingPeer,
    ServingPeer,
    open_asking_peer,
    open_serving_peer,
)
from tests.peer.hosts import wait_until
from tokenplace import defaults
from tokenplace.dht import directory_wire as wire
from tokenplace.dht.directory_wire import Entry
from tokenplace.dht.finder import FindResult
from tokenplace.models.names import NamedModel
from tokenplace.peer.streams import PeerStream, StreamHandler


async def wait_announced(*peers: ServingPeer) -> None:
    def is_announced() -> bool:
        statuses = [peer.announcer.status() for peer in peers if peer.announcer]
        return all(status.n_keys and status.n_confirmed == status.n_keys for status in statuses)

    await wait_until(is_announced, timeout_s=10)


async def find(asker: AskingPeer, deadline_s: float = defaults.FIND_TIMEOUT_S) -> FindResult:
    wanted = [NamedModel(TINY_MODEL.name, TINY_MODEL.artifact)]
    return await asker.finder.find(wanted, deadline_s=deadline_s)


def peers_of(result: FindResult) -> set[str]:
    return {donor.peer_id for donor in result.donors}


async def test_donors_are_found_through_a_bootstrap_peer_that_knows_none() -> None:
    async with (
        open_serving_peer() as bootstrap,
        open_serving_peer([bootstrap.addr], [TINY_MODEL]) as alice,
        open_serving_peer([bootstrap.addr], [TINY_MODEL, OTHER_MODEL]) as bob,
        open_serving_peer([bootstrap.addr], [OTHER_MODEL]) as carol,
    ):
        await wait_announced(alice, bob, carol)
        assert bootstrap.cache.donors(0) == []
        async with open_asking_peer([bootstrap.addr]) as asker:
            found: set[str] = set()
            with trio.fail_after(10):
                while len(found) < 2:
                    result = await find(asker)
                    assert result.donors
                    found |= peers_of(result)
            assert found == {alice.host.peer_id, bob.host.peer_id}
            # What the asker was not looking for, it learns in the background.
            await wait_until(lambda: len(asker.finder.known()) == 3)
            assert all(record.load(record.live_received_at) for record in asker.finder.known())
            assert {status.peer_id for status in asker.finder.status()} == {
                peer.host.peer_id for peer in (alice, bob, carol)
            }


async def test_one_address_is_enough_when_it_is_the_donors() -> None:
    async with (
        open_serving_peer([], [TINY_MODEL]) as donor,
        open_asking_peer([donor.addr]) as asker,
    ):
        with trio.fail_after(2):
            pinned = NamedModel("", TINY_MODEL.artifact[:12])
            [record] = (await asker.finder.find([pinned])).donors
        assert record.peer_id == donor.host.peer_id
        assert record.addrs
        assert record.rtt_s is not None
        assert record.offer.models == (TINY_MODEL,)


async def test_a_peers_directory_leads_to_donors_that_the_dht_does_not_name() -> None:
    async with (
        open_serving_peer() as bootstrap,
        open_serving_peer([], [TINY_MODEL]) as donor,
    ):
        assert donor.announcer is not None
        own = donor.announcer.own()
        assert own is not None
        bootstrap.cache.add(own.entry, answered_by=donor.host.peer_id, now=donor.announcer.now())
        async with open_asking_peer([bootstrap.addr]) as asker:
            with trio.fail_after(2):
                assert peers_of(await find(asker)) == {donor.host.peer_id}
            await wait_until(lambda: asker.finder.known()[0].rtt_s is not None)  # asked itself
            found_at = {addr.partition("/p2p/")[0] for addr in donor.host.addrs()}
            assert set(asker.finder.known()[0].addrs) == found_at, "not where it was heard of"


async def test_nobody_offers_it_is_a_certain_and_quick_answer() -> None:
    async with (
        open_serving_peer([], [OTHER_MODEL]) as donor,
        open_asking_peer([donor.addr]) as asker,
    ):
        with trio.fail_after(3):
            assert await find(asker) == FindResult((), complete=True)


async def test_without_anybody_to_ask_the_answer_is_quick_and_uncertain() -> None:
    async with open_asking_peer([]) as asker:
        with trio.fail_after(1):
            assert await find(asker) == FindResult((), complete=False)


async def test_an_unreachable_bootstrap_peer_makes_it_uncertain_at_the_deadline() -> None:
    async with open_serving_peer() as gone:
        addr = gone.addr
    async with open_asking_peer([addr]) as asker:
        with trio.fail_after(3):
            assert await find(asker, deadline_s=0.5) == FindResult((), complete=False)


async def test_many_who_ask_for_the_same_share_one_search() -> None:
    async with (
        open_serving_peer([], [OTHER_MODEL]) as donor,
        open_asking_peer([donor.addr]) as asker,
    ):
        await wait_until(lambda: asker.finder.known())
        asked = []
        answer = donor.host

        async def count(stream: PeerStream) -> None:
            asked.append(stream.peer_id)
            await stream.send_all(wire.encode_answer([]))

        answer.set_stream_handler(wire.PROTOCOL_ID, count)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(find, asker)
        # Each on its own would have asked for the artifact and for the name: 40 questions. One
        # search does it twice, and the background now and then.
        assert len(asked) < 20


# ---------------------------------------------------------------- dead donors


async def test_a_donor_that_died_before_anybody_met_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "WITHDRAW_TIMEOUT_S", 0)  # it has no time to say goodbye
    async with open_serving_peer() as bootstrap:
        async with open_serving_peer([bootstrap.addr], [TINY_MODEL]) as donor:
            await wait_announced(donor)
        async with open_asking_peer([bootstrap.addr]) as asker:
            with trio.fail_after(8):
                assert await find(asker) == FindResult((), complete=True)


async def test_a_donor_that_died_is_not_offered_again_and_the_other_one_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "WITHDRAW_TIMEOUT_S", 0)
    async with open_serving_peer() as bootstrap, open_asking_peer([bootstrap.addr]) as asker:
        await asker.joiner.wait_joined()
        async with open_serving_peer([bootstrap.addr], [TINY_MODEL]) as survivor:
            async with open_serving_peer([bootstrap.addr], [TINY_MODEL]) as victim:
                await wait_announced(survivor, victim)
                await find(asker)
                await wait_until(lambda: len(asker.finder.known()) == 2)
            asker.finder.mark_failed(victim.host.peer_id)
            assert peers_of(await find(asker)) == {survivor.host.peer_id}
            asker.finder.mark_failed(survivor.host.peer_id)
            with trio.fail_after(5):  # the survivor proves that it lives, the victim cannot
                assert peers_of(await find(asker)) == {survivor.host.peer_id}
            assert [status.is_failed for status in asker.finder.status()].count(True) == 1


async def test_who_leaves_in_order_is_gone_from_the_dht_and_from_those_who_knew_it() -> None:
    async with (
        open_serving_peer() as bootstrap,
        open_asking_peer([bootstrap.addr]) as asker,
    ):
        async with open_serving_peer([bootstrap.addr], [TINY_MODEL]) as donor:
            await wait_announced(donor)
            assert peers_of(await find(asker)) == {donor.host.peer_id}
        assert bootstrap.kad._store.n_records == 0
        await wait_until(lambda: not asker.finder.known())


async def test_a_donor_that_stopped_donating_is_forgotten() -> None:
    models = [TINY_MODEL]
    async with (
        open_serving_peer([], models) as donor,
        open_asking_peer([donor.addr]) as asker,
    ):
        assert peers_of(await find(asker)) == {donor.host.peer_id}
        models.clear()
        assert await asker.finder.renew(donor.host.peer_id, None, None) is None
        assert asker.finder.known() == []
        assert await find(asker) == FindResult((), complete=True)


async def test_renew_takes_what_a_refusal_brought_and_fetches_what_it_did_not() -> None:
    async with (
        open_serving_peer([], [TINY_MODEL]) as donor,
        open_asking_peer([donor.addr]) as asker,
    ):
        [record] = (await find(asker)).donors
        assert donor.announcer is not None
        keys, live = donor.announcer.signed_keys(), donor.announcer.signed_live()
        asker.finder.mark_failed(record.peer_id)
        for brought in ((keys, live), (None, None), (b"garbage", live)):
            renewed = await asker.finder.renew(record.peer_id, *brought)
            assert renewed is not None
            assert asker.finder.known() == [renewed]
        assert await asker.finder.renew("a stranger", keys, live) is None
        asker.finder.forget(record.peer_id)
        assert asker.finder.known() == []


# ---------------------------------------------------------------- hostile directories


async def say_garbage(stream: PeerStream) -> None:
    await stream.send_all(b"\x00\x00\x00\x05\xc1\xc1\xc1\xc1\xc1")


async def announce_too_much(stream: PeerStream) -> None:
    await stream.send_all(b"\xff" * 100_000)


async def trickle(stream: PeerStream) -> None:
    await stream.send_all(wire.ANSWER_LENGTH.pack(200_000))
    while True:
        await stream.send_all(b"\x00")
        await trio.sleep(0.05)


async def say_nothing(stream: PeerStream) -> None:
    await trio.sleep_forever()


async def hang_up(stream: PeerStream) -> None:
    await stream.reset()


async def hand_over_forgeries(stream: PeerStream) -> None:
    await stream.send_all(wire.encode_answer([Entry(b"keys", b"offer", b"live")] * 32))


HOSTILE: list[StreamHandler] = [
    say_garbage,
    announce_too_much,
    trickle,
    say_nothing,
    hang_up,
    hand_over_forgeries,
]


async def test_a_hostile_peer_neither_hides_nor_delays_the_donor() -> None:
    """It is a bootstrap peer, and claims in the DHT to donate the model."""
    async with (
        open_serving_peer() as hostile,
        open_serving_peer([hostile.addr]) as honest,
        open_serving_peer([honest.addr], [TINY_MODEL]) as donor,
    ):
        await wait_announced(donor)
        assert donor.announcer is not None
        for key in donor.announcer._keys_at(donor.announcer.now()):
            await hostile.kad.provide(key)
        for answer in HOSTILE:
            hostile.host.set_stream_handler(wire.PROTOCOL_ID, answer)
            async with open_asking_peer([hostile.addr, honest.addr]) as asker:
                with trio.fail_after(5):
                    result = await find(asker)
                assert peers_of(result) == {donor.host.peer_id}
                known = [record.peer_id for record in asker.finder.known()]
                assert known == [donor.host.peer_id]


async def test_only_hostile_peers_end_at_the_deadline_without_certainty() -> None:
    async with open_serving_peer() as hostile:
        hostile.host.set_stream_handler(wire.PROTOCOL_ID, trickle)
        async with open_asking_peer([hostile.addr]) as asker:
            with trio.fail_after(3):
                assert await find(asker, deadline_s=1) == FindResult((), complete=False)


async def test_statements_of_another_network_are_not_believed() -> None:
    assert NETWORK != "elsewhere"
    async with open_serving_peer([], [TINY_MODEL]) as donor:
        assert donor.announcer is not None
        donor.announcer.network = "elsewhere"
        async with open_asking_peer([donor.addr]) as asker:
            with trio.fail_after(5):
                assert (await find(asker)).donors == ()
