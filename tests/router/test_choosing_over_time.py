"""What the rules come to over many requests: donors that lie, fail or stall, requesters that know
only old figures, newcomers, and networks that go away. See `market`.
"""

from __future__ import annotations

from random import Random
from statistics import mean

import pytest

from tests.router.market import Donor, Market
from tokenplace import defaults
from tokenplace.router.policy import Standing

MINUTE_S = 60.0


def good(n: int, **how: float) -> list[Donor]:
    return [Donor(f"good-{each}", n_seats=4, decode_tps=how.get("tps", 20.0)) for each in range(n)]


@pytest.mark.parametrize("its_tps", [20.0, 5.0])
def test_a_liar_among_ten_gets_less_than_its_share(its_tps: float) -> None:
    liar = Donor("liar", decode_tps=its_tps, prefill_tps=20 * its_tps, n_seats=4, boast=100)
    market = Market([*good(9), liar], 1, seed=1)
    market.run(600, per_second=2)
    assert market.share_of({"liar"}, since=MINUTE_S) < 0.08


def test_one_that_errs_and_one_that_stalls_are_left_and_others_do_not_notice() -> None:
    bad = [Donor("errs", kind="errs"), Donor("stalls", kind="stalls")]
    market = Market([*good(3), *bad], 1, seed=2, n_answer=60)
    market.run(600, per_second=1)
    assert market.share_of({"errs", "stalls"}, since=MINUTE_S) < 0.03
    assert all(asked.is_answered for asked in market.requesters[0].asked if asked.at < 500)
    healthy = Market(good(3), 1, seed=2, n_answer=60)
    healthy.run(600, per_second=1)
    assert market.p95_first_token_s(MINUTE_S) <= 1.3 * healthy.p95_first_token_s(MINUTE_S)


def test_one_that_was_bad_and_is_well_again_comes_back() -> None:
    donors = [*good(2), Donor("late", kind="errs", n_seats=4)]
    market = Market(donors, 1, seed=3)

    def heal() -> None:
        donors[-1].kind = "good"

    market._at(200, heal)
    market.run(1200, per_second=0.5)
    asked = market.firsts(since=800)
    assert asked["late"] > 0.2 * asked.total()


@pytest.mark.parametrize(("n_seats", "load"), [(1, 0.95), (4, 0.95), (4, 0.7)])
def test_many_requesters_with_old_figures_do_not_herd(n_seats: int, load: float) -> None:
    donors = [Donor(f"donor-{n:02}", n_seats=n_seats) for n in range(20)]
    market = Market(donors, 200, seed=4, stale_s=20)
    answer_s = market.n_answer / 20 + market.n_prompt / 400
    market.run(600, per_second=load * 20 * n_seats / answer_s)
    warm = market.queues[200:]
    each = [mean(queues[n] for queues in warm) for n in range(20)]
    assert max(each) < 3 * mean(each), "no donor has three times the mean queue"
    if n_seats > 1:  # with one, few wait at a time, and chance alone makes more of three times
        herded = [queues for queues in warm if max(queues) > 3 * mean(queues)]
        assert len(herded) < 0.5 * len(warm)


@pytest.mark.parametrize("seed", range(3))
def test_where_everybody_waits_donors_that_few_know_take_their_part(seed: int) -> None:
    """After a minute each requester has measured two or three donors of twenty."""
    donors = [Donor(f"donor-{n:02}", n_seats=4) for n in range(20)]
    market = Market(donors, 200, seed=seed, stale_s=20)
    answer_s = market.n_answer / 20 + market.n_prompt / 400
    market.run(300, per_second=1.02 * 20 * 4 / answer_s)
    warm = market.queues[int(MINUTE_S) :]
    each = [mean(queues[n] for queues in warm) for n in range(20)]
    assert max(each) < 1.4 * mean(each)


def test_a_burst_of_one_requester_is_spread() -> None:
    market = Market(good(4), 1, seed=5)
    market.run(60, per_second=0.5)
    for _ in range(16):
        market._at(100, lambda: market._request(market.requesters[0]))
    market.run(101, per_second=1e-9)
    burst = market.firsts(since=100)
    assert max(burst.values()) <= 8


def test_newcomers_share_stays_small_though_they_are_many() -> None:
    """A farm of blackholes in one network: whoever is drawn from it never answers."""
    farm = [Donor(f"farm-{n:02}", kind="errs", group="farm", boast=100) for n in range(40)]
    market = Market(good(4), 1, seed=6)
    market.run(60, per_second=1)
    market.donors = market.requesters[0].donors = [*market.donors, *farm]
    market._tell()
    at = market.now
    market.run(at + 600, per_second=1)
    names = {donor.name for donor in farm}
    assert market.share_of(names, since=at) <= 1.2 * defaults.NEWCOMERS_SHARE


@pytest.mark.parametrize("seed", range(5))
def test_the_own_network_away_for_20_s_opens_no_breaker(seed: int) -> None:
    market = Market(good(5), 1, seed=seed)
    requester = market.requesters[0]
    begins = 100 + 5 * Random(seed).random()
    requester.away = (begins, begins + 20)
    standings: list[Standing] = []

    def look() -> None:
        memory = requester.selector.memory
        standings.extend(memory.standing(donor.name, market.now)[0] for donor in market.donors)

    for second in range(30):
        market._at(begins + second, look)
    market.run(300, per_second=1)
    assert set(standings) <= {Standing.READY, Standing.SUSPECT}
    back = [asked for asked in requester.asked if asked.at > begins + 20]
    assert all(asked.is_answered for asked in back if asked.at < 250)
    assert back[0].first_token_s is not None
    assert back[0].first_token_s < 3
