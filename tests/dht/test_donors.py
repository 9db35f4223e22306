"""What gets into the directory cache, what stays, and what comes out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.dht.donating import NETWORK, NOW, OTHER_MODEL, TINY_MODEL, Donor, identity_of
from tokenplace import defaults
from tokenplace.dht.directory_wire import Entry
from tokenplace.dht.donors import DirectoryCache, DonorRecord
from tokenplace.errors import RemoteProtocolError
from tokenplace.peer.adverts import DonorState, Load, sign_keys, sign_live
from tokenplace.sealing.suites import PublicKey

CAROL = "carol's peer id"  # hands over what others said
OTHER_KEY = PublicKey(2, 0x647A, 1, 3, bytes(1216))


def cache_of(max_donors: int = 10, allow_private: bool = False) -> DirectoryCache:
    return DirectoryCache(NETWORK, allow_private=allow_private, max_donors=max_donors)


def entry_of(donor: Donor) -> Entry:
    own = donor.announcer().own()
    assert own is not None
    return own.entry


@pytest.fixture
def alice() -> Donor:
    return Donor(identity_of("alice"))


def add(cache: DirectoryCache, donor: Donor, by: str = "", now: float | None = None) -> DonorRecord:
    record = cache.add(
        entry_of(donor),
        answered_by=by or donor.identity.peer_id,
        now=donor.now if now is None else now,
        rtt_s=0.05,
    )
    assert record is not None
    return record


def test_a_donor_that_spoke_itself_is_known_with_its_load(alice: Donor) -> None:
    cache = cache_of()
    alice.load = Load(DonorState.ACCEPTING, 5, 123.4, 10.0)
    record = add(cache, alice)
    assert cache.donors(NOW) == [record]
    assert record.load(NOW) == Load(DonorState.ACCEPTING, 4, 120.0, 10.0)
    assert record.load(NOW + defaults.LIVE_LIFETIME_S + 1) is None
    assert record.live is not None
    assert record.live.epoch == alice.epoch
    assert record.rtt_s == 0.05
    [status] = cache.status(NOW + 3)
    assert (status.models, status.live_age_s, status.is_failed) == ((TINY_MODEL.name,), 3, False)


def test_who_hands_it_over_does_not_matter_but_load_is_the_donors_own_word(alice: Donor) -> None:
    cache = cache_of()
    record = add(cache, alice, by=CAROL)
    assert cache.donors(NOW) == [record]
    assert record.load(NOW) is None
    assert record.live is not None  # for its epoch
    assert record.rtt_s is None


def test_a_live_from_others_does_not_displace_the_donors_own_while_that_is_fresh(
    alice: Donor,
) -> None:
    cache = cache_of()
    add(cache, alice)
    alice.now += defaults.LIVE_REFRESH_S
    alice.epoch = b"second.."
    assert add(cache, alice, by=CAROL).load(alice.now) is not None
    alice.now += defaults.LIVE_LIFETIME_S + 1
    record = add(cache, alice, by=CAROL)
    assert record.live is not None
    assert record.live.epoch == b"second.."
    assert record.load(alice.now) is None


def test_an_old_live_handed_on_does_not_spoil_keys_and_offer(alice: Donor) -> None:
    now = NOW + defaults.LIVE_LIFETIME_S + defaults.CLOCK_SKEW_S + 1
    record = add(cache_of(), alice, by=CAROL, now=now)
    assert record.live is None


def test_a_donors_own_live_is_fresh_whatever_its_clock_says(alice: Donor) -> None:
    alice.now = NOW - 200
    assert add(cache_of(), alice, now=NOW).load(NOW) is not None


def test_a_failed_donor_is_back_only_by_its_own_word(alice: Donor) -> None:
    cache = cache_of()
    record = add(cache, alice)
    cache.mark_failed(record.peer_id, NOW)
    assert cache.donors(NOW) == []
    assert cache.failed(NOW, is_due_only=False) == [record]
    assert cache.failed(NOW, is_due_only=True) == []
    assert cache.failed(NOW + defaults.DONOR_RETRY_S, is_due_only=True) == [record]
    assert [status.is_failed for status in cache.status(NOW)] == [True]

    add(cache, alice, by=CAROL)
    assert cache.donors(NOW) == []
    add(cache, alice)
    assert len(cache.donors(NOW)) == 1


def test_a_donor_that_says_it_leaves_is_not_listed_until_it_says_otherwise(alice: Donor) -> None:
    cache = cache_of()
    add(cache, alice)
    accepting = alice.load
    for _ in range(3):  # it is still connected, and answers whoever asks
        alice.now += 1
        alice.load = replace(alice.load, state=DonorState.FINISHING)
        leaving = add(cache, alice)
        assert cache.donors(alice.now) == []
        assert cache.failed(alice.now, is_due_only=False) == [leaving]
    due_at = alice.now + defaults.DONOR_RETRY_S
    assert cache.failed(due_at - 1, is_due_only=True) == []
    assert cache.failed(due_at, is_due_only=True) == [leaving]
    alice.now += 1
    alice.load = accepting
    assert add(cache, alice) in cache.donors(alice.now)


def test_failing_again_and_again_is_retried_ever_later_but_not_never(alice: Donor) -> None:
    cache = cache_of()
    record = add(cache, alice)
    for _ in range(100):
        cache.mark_failed(record.peer_id, NOW)
    assert cache.failed(NOW + defaults.DONOR_RETRY_MAX_S - 1, is_due_only=True) == []
    assert cache.failed(NOW + defaults.DONOR_RETRY_MAX_S, is_due_only=True) == [record]


def test_an_expired_offer_is_gone(alice: Donor) -> None:
    cache = cache_of()
    record = add(cache, alice)
    last = record.offer.expires_at + defaults.CLOCK_SKEW_S
    assert cache.get(record.peer_id, last) == record
    assert cache.get(record.peer_id, last + 1) is None
    assert cache.donors(last + 1) == cache.status(last + 1) == []


def test_older_statements_do_not_come_back(alice: Donor) -> None:
    cache = cache_of()
    old = entry_of(alice)
    alice.models = [OTHER_MODEL]
    alice.now += 1
    record = add(cache, alice)
    # Others may lag behind; the donor itself may not.
    assert cache.add(old, answered_by=CAROL, now=alice.now) == record
    with pytest.raises(RemoteProtocolError, match="older"):
        cache.add(old, answered_by=record.peer_id, now=alice.now)
    cache.forget(record.peer_id)
    with pytest.raises(RemoteProtocolError, match="older"):
        cache.add(old, answered_by=CAROL, now=alice.now)


def test_a_withdrawn_offer_is_known_but_not_listed(alice: Donor) -> None:
    cache = cache_of()
    add(cache, alice)
    announcer = alice.announcer()
    alice.models = []
    alice.now += 1
    entry = Entry(announcer.signed_keys(), announcer.signed_offer(), announcer.signed_live())
    cache.add(entry, answered_by=alice.identity.peer_id, now=alice.now)
    assert cache.donors(alice.now) == []


def test_two_different_keys_under_one_number_drop_the_donor(alice: Donor) -> None:
    cache = cache_of()
    record = add(cache, alice)
    seq = record.keys.seq
    forked = sign_keys(alice.identity, NETWORK, [OTHER_KEY], seq=seq, now=NOW)
    with pytest.raises(RemoteProtocolError, match="two different keys"):
        cache.add(Entry(forked, record.offer_envelope), answered_by=CAROL, now=NOW)
    assert cache.donors(NOW) == []
    with pytest.raises(RemoteProtocolError, match="two different keys"):
        add(cache, alice)
    assert cache.renew(record.peer_id, record.keys_envelope, None, now=NOW) is None


def flood(cache: DirectoryCache, n_donors: int) -> None:
    """So many donors that everybody known before is crowded out."""
    for number in range(n_donors):
        add(cache, Donor(identity_of(f"flood {number}"), now=NOW + 10 + number))


@pytest.mark.parametrize("n_flood", [0, 20])
def test_two_peers_with_different_keys_of_one_donor_drop_it_even_after_it_was_crowded_out(
    alice: Donor, n_flood: int
) -> None:
    cache = cache_of(max_donors=5)
    record = add(cache, alice, by="bob's peer id")
    forked = sign_keys(alice.identity, NETWORK, [OTHER_KEY], seq=record.keys.seq, now=NOW)
    flood(cache, n_flood)
    with pytest.raises(RemoteProtocolError, match="two different keys"):
        cache.add(Entry(forked, record.offer_envelope), answered_by=CAROL, now=NOW + 60)
    flood(cache, n_flood)
    with pytest.raises(RemoteProtocolError, match="two different keys"):
        add(cache, alice, now=NOW + 61)
    assert record.peer_id not in {known.peer_id for known in cache.donors(NOW + 61)}


def test_a_donor_crowded_out_does_not_come_back_as_it_was_before(alice: Donor) -> None:
    cache = cache_of(max_donors=5)
    old = entry_of(alice)
    alice.models, alice.now = [OTHER_MODEL], NOW + 1
    add(cache, alice, by=CAROL)
    flood(cache, 20)
    assert cache.get(alice.identity.peer_id, NOW + 60) is None
    with pytest.raises(RemoteProtocolError, match="older"):
        cache.add(old, answered_by=CAROL, now=NOW + 60)


def test_what_is_remembered_is_bounded_and_the_banned_are_remembered_longest(
    alice: Donor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "MAX_FLOORS", 8)
    cache = cache_of(max_donors=5)
    record = add(cache, alice)
    forked = sign_keys(alice.identity, NETWORK, [OTHER_KEY], seq=record.keys.seq, now=NOW)
    with pytest.raises(RemoteProtocolError, match="two different keys"):
        cache.add(Entry(forked, record.offer_envelope), answered_by=CAROL, now=NOW)
    flood(cache, 40)
    assert len(cache._floors) == 8
    with pytest.raises(RemoteProtocolError, match="two different keys"):
        add(cache, alice, now=NOW + 61)


def test_keys_that_the_offer_does_not_name_are_refused_unless_newer(alice: Donor) -> None:
    cache = cache_of()
    offer = entry_of(alice).offer
    older = sign_keys(alice.identity, NETWORK, [OTHER_KEY], seq=1, now=NOW)
    with pytest.raises(RemoteProtocolError, match="not those"):
        cache.add(Entry(older, offer), answered_by=CAROL, now=NOW)
    newer = sign_keys(alice.identity, NETWORK, [OTHER_KEY], seq=int(NOW * 1000) + 5, now=NOW)
    record = cache.add(Entry(newer, offer), answered_by=CAROL, now=NOW)
    assert record is not None
    assert record.keys.keys == (OTHER_KEY,)


def test_statements_of_two_peers_do_not_mix(alice: Donor) -> None:
    bob = Donor(identity_of("bob"))
    with pytest.raises(RemoteProtocolError, match="signed by"):
        cache_of().add(Entry(entry_of(alice).keys, entry_of(bob).offer), answered_by=CAROL, now=NOW)


def test_a_refusals_keys_and_live_renew_the_record(alice: Donor) -> None:
    cache = cache_of()
    record = add(cache, alice)
    cache.mark_failed(record.peer_id, NOW)
    seq = int(NOW * 1000) + 1000
    keys = sign_keys(alice.identity, NETWORK, [OTHER_KEY], seq=seq, now=NOW + 1)
    live = sign_live(alice.identity, NETWORK, b"restarts", alice.load, seq=seq, now=NOW + 1)
    renewed = cache.renew(record.peer_id, keys, live, now=NOW + 30)
    assert renewed is not None
    assert renewed.keys.keys == (OTHER_KEY,)
    assert renewed.live is not None
    assert renewed.live.epoch == b"restarts"
    assert renewed.live_received_at == NOW + 30
    assert cache.donors(NOW + 30) == [renewed]
    assert cache.renew("a stranger", keys, live, now=NOW) is None
    with pytest.raises(RemoteProtocolError):
        cache.renew(record.peer_id, keys[:-1], None, now=NOW)


def test_addresses_signed_by_the_donor_come_first_and_private_ones_only_when_allowed(
    alice: Donor,
) -> None:
    alice.addrs = ["/ip4/192.168.0.7/tcp/4010", "/ip4/1.1.1.1/tcp/4010"]
    found_at = ["/ip4/8.8.8.8/tcp/4010", "/ip4/10.0.0.1/tcp/4010"]
    for allow_private, expected in (
        (False, ("/ip4/1.1.1.1/tcp/4010", "/ip4/8.8.8.8/tcp/4010")),
        (True, (*alice.addrs, *found_at)),
    ):
        record = cache_of(allow_private=allow_private).add(
            entry_of(alice), answered_by=CAROL, addrs=found_at, now=NOW
        )
        assert record is not None
        assert record.addrs == expected


def test_own_peers_are_not_listed(alice: Donor) -> None:
    cache = DirectoryCache(
        NETWORK, allow_private=True, own_peers=frozenset([alice.identity.peer_id])
    )
    assert cache.add(entry_of(alice), answered_by=CAROL, now=NOW) is None
    assert cache.donors(NOW) == []


def test_when_full_those_others_vouch_for_go_first_then_the_oldest() -> None:
    cache = cache_of(max_donors=3)
    donors = [Donor(identity_of(f"donor {n}"), now=NOW + n) for n in range(5)]
    add(cache, donors[0])
    for donor in donors[1:4]:
        add(cache, donor, by=CAROL)
    known = {record.peer_id for record in cache.donors(NOW + 5)}
    assert known == {donors[n].identity.peer_id for n in (0, 2, 3)}


class CacheMachine(RuleBasedStateMachine):
    """Donors talk, others repeat what they once heard, donors fail; the cache never goes back."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.cache = cache_of(max_donors=2)
        self.donors = [Donor(identity_of(f"donor {n}")) for n in range(3)]
        self.announcers = [donor.announcer() for donor in self.donors]
        self.heard: list[tuple[str, Entry]] = []
        self.newest: dict[str, int] = {}

    @rule(seconds=st.floats(0, 400))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for donor in self.donors:
            donor.now = self.now

    @rule(n=st.integers(0, 2), is_new=st.booleans())
    def a_donor_speaks(self, n: int, is_new: bool) -> None:
        if is_new:
            models = [TINY_MODEL, OTHER_MODEL]
            self.donors[n].models = [models[len(self.heard) % 2]]
        own = self.announcers[n].own()
        assert own is not None
        peer_id = self.donors[n].identity.peer_id
        record = self.cache.add(own.entry, answered_by=peer_id, now=self.now)
        assert record is not None
        assert record.load(self.now) is not None
        assert self.cache.get(peer_id, self.now) == record
        self.heard.append((peer_id, own.entry))

    @rule(data=st.data())
    def others_repeat_it(self, data: st.DataObject) -> None:
        if self.heard:
            _, entry = data.draw(st.sampled_from(self.heard))
            refusal = None
            try:
                self.cache.add(entry, answered_by=CAROL, now=self.now)
            except RemoteProtocolError as error:
                refusal = error.detail.partition(": ")[2]
            assert refusal in (
                None,
                "expired",
                "older than one already seen",
                "not those that the offer names",
            )

    @rule(n=st.integers(0, 2))
    def a_donor_fails(self, n: int) -> None:
        peer_id = self.donors[n].identity.peer_id
        self.cache.mark_failed(peer_id, self.now)
        assert peer_id not in {record.peer_id for record in self.cache.donors(self.now)}

    @invariant()
    def the_cache_is_bounded_and_never_goes_back(self) -> None:
        donors = self.cache.donors(self.now)
        assert len(self.cache.status(self.now)) <= 2
        known = {record.peer_id for record in donors}
        self.newest = {peer: seq for peer, seq in self.newest.items() if peer in known}
        for record in donors:
            assert record.is_living(self.now)
            assert record.offer.seq >= self.newest.get(record.peer_id, 0)
            self.newest[record.peer_id] = record.offer.seq


CacheMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestCache = CacheMachine.TestCase
