"""What is refused because it killed a worker."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engine.parts import BOB, submit
from tokenplace import defaults
from tokenplace.engine.messages import Count, Score, Submit
from tokenplace.engine.quarantine import Quarantine

EVIL = submit(1, "evil", grammar="g")


@pytest.mark.parametrize(
    "same",
    [
        replace(EVIL, request=2),
        replace(EVIL, bucket="bob", cache_scope=BOB, seed=b"2" * 8),
        replace(EVIL, resume=((0, (1, 2)),), prompt_digest=b"d" * 32),
    ],
    ids=["another number", "another requester", "resumed"],
)
def test_the_same_is_refused_whoever_asks(same: Submit) -> None:
    quarantine = Quarantine()
    assert quarantine.digest(same) == quarantine.digest(EVIL)


@pytest.mark.parametrize(
    "other",
    [
        submit(1, "good", grammar="g"),
        replace(EVIL, grammar="h"),
        replace(EVIL, max_tokens=9),
        replace(EVIL, sampling=submit(temperature=0.5).sampling),
        replace(EVIL, n=2),
        replace(EVIL, stop=(b".",)),
        Count(1, EVIL.segments),
    ],
    ids=["prompt", "grammar", "length", "sampling", "choices", "stop", "what is asked"],
)
def test_another_request_is_another(other: Submit | Count) -> None:
    quarantine = Quarantine()
    assert quarantine.digest(other) != quarantine.digest(EVIL)


def test_digests_are_keyed() -> None:
    """They tell nothing to others."""
    assert Quarantine().digest(EVIL) != Quarantine().digest(EVIL)


def test_twice_is_no_chance_unless_it_was_cleared_in_between() -> None:
    quarantine = Quarantine()
    evil = quarantine.digest(Score(1, "", EVIL.segments, (5,), b"", (), b"", 0))
    for _ in range(3):
        for _ in range(defaults.CRASHES_TO_QUARANTINE):
            assert not quarantine.has(evil)
            quarantine.note_crash(evil)
        assert quarantine.has(evil)
        quarantine.clear(evil)
    quarantine.condemn(evil)
    assert quarantine.has(evil)


def test_the_quarantine_forgets_the_oldest() -> None:
    quarantine = Quarantine()
    first = quarantine.digest(submit(0, "evil"))
    quarantine.condemn(first)
    for n in range(defaults.MAX_CRASHES_REMEMBERED):
        quarantine.note_crash(quarantine.digest(submit(0, f"other {n}")))
    assert not quarantine.has(first)
