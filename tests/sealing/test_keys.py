"""How a donor's keys follow one another: whoever believes what was signed can seal, and no private
key outlives its time.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.sealing.clocks import Machine
from tests.sealing.forge import BOB_ID, NETWORK, REPLY_KEY
from tokenplace import defaults
from tokenplace.errors import UnknownKey
from tokenplace.sealing.clock import ElapsedClock
from tokenplace.sealing.keys import KeyRing
from tokenplace.sealing.request import open_request, seal_request
from tokenplace.sealing.suites import GREASE_IDS, PrivateKey, PublicKey, best_key

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


def advertised(ring: KeyRing, now: float) -> PublicKey:
    key = best_key(ring.advertised(now).keys)
    assert key is not None
    return key


def same_key() -> PrivateKey:
    """Making one takes longer than all else here."""
    return REPLY_KEY


def opens(ring: KeyRing, key: PublicKey, now: float) -> bool:
    sealed = seal_request(b"payload", key, BOB_ID, NETWORK)
    try:
        return open_request(sealed, ring, BOB_ID, NETWORK, now).payload == b"payload"
    except UnknownKey:
        return False


def test_a_key_is_advertised_for_a_day_and_opens_for_another() -> None:
    ring = KeyRing()
    first = advertised(ring, 0)
    assert ring.advertised(DAY_S - 1).keys == ring.advertised(0).keys
    second = advertised(ring, DAY_S)
    assert second != first
    for hours, n_open in ((24, 2), (47.99, 2), (48, 1)):
        now = hours * HOUR_S
        assert [opens(ring, key, now) for key in (second, first)] == [True, n_open == 2]


def test_a_key_is_dropped_though_nobody_advertises_anything() -> None:
    ring = KeyRing()
    key = advertised(ring, 0)
    assert opens(ring, key, 2 * DAY_S - 1)
    assert not opens(ring, key, 2 * DAY_S)
    assert ring._held == {}  # and not only unused


def test_statements_end_before_their_keys_by_a_late_clock_too() -> None:
    ring = KeyRing()
    assert ring.advertised(0).lifetime_s == 2 * DAY_S - defaults.CLOCK_SKEW_S
    assert ring.advertised(DAY_S - 1).lifetime_s == DAY_S + 1 - defaults.CLOCK_SKEW_S
    assert ring.advertised(0).lifetime_s <= defaults.KEYS_LIFETIME_S


def test_no_statement_lives_longer_than_the_protocol_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "PRIVATE_KEY_LIFETIME_S", 30 * DAY_S)
    assert KeyRing().advertised(0).lifetime_s == defaults.KEYS_LIFETIME_S


def test_ids_do_not_return_for_months() -> None:
    ring = KeyRing(same_key)
    seen: list[int] = []
    for day in range(128):
        seen += [key.id for key in ring.advertised(day * DAY_S).keys]
    assert sorted(seen) == list(range(256))
    assert {key.id for key in ring.advertised(128 * DAY_S).keys} == set(seen[:2])


def test_the_first_id_differs_from_start_to_start() -> None:
    assert len({advertised(KeyRing(same_key), 0).id for _ in range(64)}) > 8


def test_a_list_has_one_entry_of_grease_at_any_place() -> None:
    places, sizes = set(), set()
    for _ in range(64):
        ring = KeyRing(same_key)
        keys = ring.advertised(0).keys
        (grease,) = (key for key in keys if not key.is_supported)
        assert {grease.kem, grease.kdf, grease.aead} <= set(GREASE_IDS)
        assert grease.id != advertised(ring, 0).id
        places.add(keys.index(grease))
        sizes.add(len(grease.public))
    assert places == {0, 1}
    assert len(sizes) > 8
    assert max(sizes) <= defaults.MAX_GREASE_KEY_BYTES


def test_what_is_reserved_for_grease_is_as_in_rfc_8701() -> None:
    assert [f"{code:04x}" for code in GREASE_IDS[:2]] == ["0a0a", "1a1a"]
    assert [f"{code:04x}" for code in GREASE_IDS[-2:]] == ["eaea", "fafa"]
    assert len(GREASE_IDS) == 16


def test_the_best_known_suite_is_taken_and_nothing_weaker() -> None:
    ring = KeyRing()
    key = advertised(ring, 0)
    x25519_only = PublicKey(3, 0x0020, 1, 3, bytes(32))
    other_aead = PublicKey(4, key.kem, key.kdf, 1, key.public)
    other_kdf = PublicKey(5, key.kem, 2, key.aead, key.public)
    assert best_key([x25519_only, other_aead, other_kdf, key]) == key
    assert best_key([x25519_only, other_aead, other_kdf]) is None
    assert best_key([]) is None


@dataclass
class Statement:
    """What somebody was told, and how long it is believed by a clock as late as tolerated."""

    key: PublicKey
    until: float


class RotationMachine(RuleBasedStateMachine):
    """A donor's machine runs, sleeps, and has its clock set; meanwhile it hands out statements."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine()
        self.clock = ElapsedClock(lambda: self.machine.steady, lambda: self.machine.wall)
        self.ring = KeyRing()
        self.statements: list[Statement] = []
        self.made_at: dict[bytes, float] = {}  # by public key; real time
        self.real_s = 0.0  # what passes for everybody else

    @rule(seconds=st.floats(0, 2 * DAY_S))
    def run(self, seconds: float) -> None:
        self.machine.run(seconds)
        self.real_s += seconds

    @rule(seconds=st.floats(0, 5 * DAY_S))
    def sleep(self, seconds: float) -> None:
        self.clock()  # each second by the announcer
        self.machine.sleep(seconds)
        self.real_s += seconds

    @rule(seconds=st.floats(-400 * DAY_S, 0))
    def set_the_clock_back(self, seconds: float) -> None:
        self.clock()
        self.machine.set_clock(seconds)
        self.clock()

    @rule()
    def hand_out(self) -> None:
        said = self.ring.advertised(self.clock())
        key = best_key(said.keys)
        assert key is not None
        assert 0 < said.lifetime_s <= defaults.KEYS_LIFETIME_S
        self.made_at.setdefault(key.public, self.real_s)
        until = self.real_s + said.lifetime_s + defaults.CLOCK_SKEW_S
        self.statements.append(Statement(key, until))
        del self.statements[:-6]

    def is_held(self, key: PublicKey) -> bool:
        try:
            return self.ring.private_key(key.id, self.clock()).public == key.public
        except UnknownKey:
            return False

    @invariant()
    def who_believes_a_statement_can_seal(self) -> None:
        # What the two clocks disagree on may make a key end earlier, by the one second that
        # passes for a correction each time.
        for statement in self.statements:
            if self.real_s < statement.until - 60:
                assert self.is_held(statement.key)

    @invariant()
    def nobody_can_seal_to_a_key_whose_time_is_over(self) -> None:
        for statement in self.statements:
            age_s = self.real_s - self.made_at[statement.key.public]
            if age_s > defaults.PRIVATE_KEY_LIFETIME_S + 60:
                assert not self.is_held(statement.key)

    @invariant()
    def few_keys_are_held(self) -> None:
        assert len(self.ring._held) <= 2


TestRotation = RotationMachine.TestCase
