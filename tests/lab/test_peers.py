"""Real peers on hosts of their own, whose links misbehave: what their apps are told.

Everything is done at the same time, on two networks; the tests look at what came of it. Start at
`do_everything`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from benchmarks.lab.peers import open_lab_network
from benchmarks.lab.router import Traffic
from benchmarks.lab.scenarios import (
    FLAGS,
    LINKS,
    NO_TWIN,
    WITH_TWIN,
    Away,
    Bench,
    Cut,
    Told,
    through_a_flap,
    through_a_partition,
    through_links,
    while_away,
)
from tokenplace.defaults import IDLE_TIMEOUT_S

pytestmark = pytest.mark.slow

TOPICS = ("canaries", "Grüße an 日本")
N_TOKENS = 60
FLAP_S = 5.0
AWAY_S = IDLE_TIMEOUT_S + 1.0  # so long that every answer under way is given up


@dataclass
class Seen:
    """What came of everything."""

    over_links: Sequence[Told] = ()
    traffic: Traffic = field(default_factory=Traffic)
    flapped: Sequence[Told] = ()
    cuts: list[Cut] = field(default_factory=list)
    aways: list[Away] = field(default_factory=list)


@pytest.fixture(scope="module")
def seen(has_lab: None) -> Iterator[Seen]:
    folder = Path(tempfile.mkdtemp(prefix="tp-lab-"))  # short: a Unix socket's may have 107 bytes
    folders = [folder / "a", folder / "b"]
    for each in folders:
        each.mkdir()
    seen = Seen()
    trio.run(do_everything, *folders, seen)
    yield seen
    shutil.rmtree(folder)


async def do_everything(first: Path, second: Path, seen: Seen) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(do_what_spares_donors, first, seen)
        nursery.start_soon(do_what_cuts_them_off, second, seen)


async def do_what_spares_donors(folder: Path, seen: Seen) -> None:
    async with open_lab_network(folder, len(LINKS), flags=FLAGS) as network:
        bench = Bench(network)
        seen.over_links = await through_links(bench, TOPICS, N_TOKENS)
        seen.traffic = await network.lab.traffic()
        seen.aways.append(await while_away(bench, AWAY_S, TOPICS))


async def do_what_cuts_them_off(folder: Path, seen: Seen) -> None:
    async with open_lab_network(folder, 3, flags=FLAGS) as network:
        bench = Bench(network)

        async def flap() -> None:
            donor = network.donors[-1]
            seen.flapped = await through_a_flap(bench, donor, donor.host, FLAP_S, TOPICS)

        async def cut() -> None:
            seen.cuts.append(await through_a_partition(bench, network.donors[0], TOPICS, 0, True))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flap)
            nursery.start_soon(cut)


def faults(all_told: Sequence[Told]) -> list[str]:
    return [told.line for told in all_told if told.problem]


def test_links_that_misbehave_change_no_answer(seen: Seen) -> None:
    assert {told.what for told in seen.over_links} == set(LINKS)
    assert not faults(seen.over_links)
    assert seen.traffic.n_lost > 0, "one of them loses packets"
    assert seen.traffic.n_doubled > 0, "one of them doubles some"


def test_an_answer_survives_a_flap_in_its_middle(seen: Seen) -> None:
    assert len(seen.flapped) == len(TOPICS)
    assert not faults(seen.flapped)


def test_the_twin_of_a_donor_that_is_cut_off_goes_on(seen: Seen) -> None:
    (cut,) = seen.cuts
    with_twin = [told for told in cut.all_told if told.what.endswith(WITH_TWIN)]
    assert len(with_twin) == 3
    assert not faults(with_twin)


def test_without_a_twin_the_app_is_told_why_there_is_no_more(seen: Seen) -> None:
    (cut,) = seen.cuts
    without = [told for told in cut.all_told if told.what.endswith(NO_TWIN)]
    assert len(without) == 3
    for told in without:
        assert not told.question.is_answered, told.what
        assert told.question.error or told.question.stream.error, told.what
        assert not told.is_corrupt, told.line


def test_no_cut_is_borne_for_longer_than_silence_is(seen: Seen) -> None:
    (cut,) = seen.cuts
    # Twice as long would be one timeout after another.
    assert max(cut.went_on_s) < 2 * IDLE_TIMEOUT_S, cut.went_on_s


def test_no_donor_is_blamed_for_the_requesters_own_outage(seen: Seen) -> None:
    (away,) = seen.aways
    assert not any(told.is_corrupt for told in away.during), faults(away.during)
    assert not any(told.question.is_hanging for told in away.during), faults(away.during)
    assert not away.back.problem, away.back.line
    assert away.rules
    assert not away.is_anybody_shunned, away.rules
