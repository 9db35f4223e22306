from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tokenplace import defaults
from tokenplace.errors import DonorBusy, StaleEpoch
from tokenplace.sealing.epochs import EPOCH_BYTES, Epochs

KEPT_S = (1 + defaults.EPOCHS_KEPT) * defaults.EPOCH_S


def test_an_epoch_is_current_for_a_minute() -> None:
    epochs = Epochs()
    first = epochs.current(0.0)
    assert len(first) == EPOCH_BYTES
    assert epochs.current(defaults.EPOCH_S - 0.1) == first
    assert epochs.current(defaults.EPOCH_S) != first


def test_a_request_is_accepted_once() -> None:
    epochs = Epochs()
    epoch = epochs.current(0.0)
    epochs.accept(epoch, b"enc", 1.0)
    epochs.accept(epoch, b"other enc", 1.0)
    with pytest.raises(StaleEpoch):
        epochs.accept(epoch, b"enc", 2.0)


def test_an_epoch_of_nobody_is_stale() -> None:
    epochs = Epochs()
    epochs.current(0.0)
    with pytest.raises(StaleEpoch):
        epochs.accept(bytes(EPOCH_BYTES), b"enc", 0.0)


def test_the_current_and_the_five_before_are_accepted() -> None:
    epochs = Epochs()
    made = [epochs.current(float(n * defaults.EPOCH_S)) for n in range(7)]
    now = 6.0 * defaults.EPOCH_S
    with pytest.raises(StaleEpoch):
        epochs.accept(made[0], b"enc", now)
    for epoch in made[1:]:
        epochs.accept(epoch, b"enc", now)


def test_an_epoch_dies_by_age_even_if_no_other_was_drawn() -> None:
    epochs = Epochs()
    epoch = epochs.current(0.0)
    epochs.accept(epoch, b"enc", KEPT_S - 0.1)
    with pytest.raises(StaleEpoch):
        epochs.accept(epoch, b"other enc", float(KEPT_S))


def test_a_full_cache_refuses_instead_of_forgetting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_SEEN_PER_EPOCH", 2)
    epochs = Epochs()
    epoch = epochs.current(0.0)
    epochs.accept(epoch, b"1", 0.0)
    epochs.accept(epoch, b"2", 0.0)
    with pytest.raises(DonorBusy):
        epochs.accept(epoch, b"3", 0.0)
    with pytest.raises(StaleEpoch):
        epochs.accept(epoch, b"1", 0.0)
    epochs.accept(epochs.current(float(defaults.EPOCH_S)), b"3", float(defaults.EPOCH_S))


class EpochsMachine(RuleBasedStateMachine):
    """Whatever the clock does: nothing is accepted twice, and memory stays bounded."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs = Epochs()
        self.now = 0.0
        self.made: list[bytes] = []
        self.accepted: set[tuple[bytes, bytes]] = set()

    @rule(seconds=st.floats(0, 400))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def advertise(self) -> None:
        epoch = self.epochs.current(self.now)
        if epoch not in self.made:
            self.made.append(epoch)

    @rule(which=st.integers(0, 9), enc=st.sampled_from([b"1", b"2", b"3"]))
    def ask(self, which: int, enc: bytes) -> None:
        if which >= len(self.made):
            return
        epoch = self.made[-1 - which]
        try:
            self.epochs.accept(epoch, enc, self.now)
        except StaleEpoch:
            return
        assert (epoch, enc) not in self.accepted
        self.accepted.add((epoch, enc))

    @invariant()
    def few_epochs_live(self) -> None:
        assert len(self.epochs._epochs) <= 1 + defaults.EPOCHS_KEPT


TestEpochsMachine = EpochsMachine.TestCase
