"""Networks of which something is measured: churn, donors that fail, a liar, many requesters, a
network that was away. Start at any `run_…`; each returns figures, and what is wrong.

All take a seed, and how long they last; the same seed gives the same figures.
`python -m benchmarks.simulation.scenarios NAME [--seed N] [--minutes M] [--trace]` prints them as
JSON; a simulation replaces trio's scheduler, so whoever runs trio already starts it so, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from random import Random
from typing import Final
from unittest.mock import patch

import trio

from benchmarks.simulation.checks import Asked, faults_of
from benchmarks.simulation.determinism import run_seeded
from benchmarks.simulation.donors import DonorSpec, Nature, SimDonor
from benchmarks.simulation.network import NOTICED_S, Line
from benchmarks.simulation.trace import Trace
from benchmarks.simulation.workload import Habits
from benchmarks.simulation.world import Plan, RequesterSpec, World, open_world
from tokenplace import defaults
from tokenplace.engine.fake import Faults
from tokenplace.engine.fake_model import FakeModel
from tokenplace.errors import DonorInternalError
from tokenplace.peer import adverts

WARM_UP_S: Final = 60.0
_LOOK_S: Final = 1.0
MODEL: Final = FakeModel(
    name="alpha",
    artifact=hashlib.sha256(b"alpha").hexdigest(),
    n_answer=(24, 40),
    prefill_tps=500.0,
    decode_tps=40.0,
    stream_cost=0.1,
)
_LINE: Final = Line(latency_s=0.02, jitter_s=0.01, bytes_per_s=4e6)
_HABITS: Final = Habits(n_prompt=(5, 60), max_tokens=(40, 40), is_plain=True, leaves=0.0)


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a scenario. figures: by name, which ends in the unit if there is one. faults:
    corrupt answers and such, a line each.
    """

    n_asked: int
    figures: Mapping[str, float]
    faults: tuple[str, ...] = ()


@dataclass(eq=False)
class _Run:
    """A scenario under way: everybody asks until `until`, and what came of it is in `asked`."""

    world: World
    until: float
    asked: list[Asked] = field(default_factory=list)

    def measured(self, figures: Mapping[str, float]) -> Measured:
        """With what is wrong in any answer."""
        models = self.world.plan.models
        faults = [fault for asked in self.asked for fault in faults_of(asked, models)]
        return Measured(len(self.asked), figures, tuple(faults))

    def after(self, time: float) -> list[Asked]:
        """What was asked after that."""
        return [asked for asked in self.asked if asked.at >= time]


def _run(
    seed: int,
    plan: Plan,
    lasts_s: float,
    main: Callable[[_Run], Awaitable[Measured]],
    say: Callable[[str], None] | None,
) -> Measured:
    """Open a world, let its apps ask for so long, and do `main` beside them, which ends it."""

    async def happen() -> Measured:
        async with open_world(seed, plan, Trace(say)) as world:
            run = _Run(world, lasts_s)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.ask_until, lasts_s, run.asked.append)
                return await main(run)

    return run_seeded(seed, happen)


def _plan(
    donors: Sequence[DonorSpec], n_requesters: int, n_apps: int, habits: Habits = _HABITS
) -> Plan:
    return Plan(
        tuple((spec, _LINE) for spec in donors),
        (RequesterSpec(n_apps=n_apps, n_requests=0, line=_LINE),) * n_requesters,
        (donors[-1].model,),  # they differ in speed alone
        habits,
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _percentile(values: Sequence[float], share: float) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else math.inf


# ---------------------------------------------------------------- churn


def run_churn(
    seed: int, minutes: float = 10.0, say: Callable[[str], None] | None = None
) -> Measured:
    """20 donors, half of whom are replaced by new ones every minute: most die, some leave."""
    n_donors = 20

    async def churn(run: _Run) -> Measured:
        dice = Random(f"{seed} churn")
        present = list(run.world.donors)
        async with trio.open_nursery() as nursery:
            pause_s = 60.0 / (n_donors / 2)
            while trio.current_time() < run.until:
                await trio.sleep(pause_s * dice.uniform(0.5, 1.5))
                gone = present.pop(dice.randrange(len(present)))
                if dice.random() < 0.8:
                    gone.crash()
                else:
                    nursery.start_soon(gone.leave)
                present.append(run.world.add_donor(DonorSpec(MODEL), _LINE))
        n_whole = sum(asked.is_whole for asked in run.asked)
        return run.measured({"answered": _share(n_whole, len(run.asked))})

    plan = _plan([DonorSpec(MODEL)] * n_donors, n_requesters=8, n_apps=2)
    return _run(seed, plan, minutes * 60, churn, say)


# ---------------------------------------------------------------- bad donors

_ERRS: Final = 1  # places among the five
_STALLS: Final = 3


def run_bad_donors(
    seed: int, minutes: float = 6.0, say: Callable[[str], None] | None = None
) -> Measured:
    """Five donors, of whom one always errs and one always stalls; and beside it the same without
    anything wrong with any.
    """
    errs = DonorSpec(MODEL, Nature.ERRS, Faults(refusal=DonorInternalError))
    stalls = DonorSpec(MODEL, Nature.STALLS, Faults(stall_after=0))
    good = DonorSpec(MODEL)
    healthy = _five(seed, [good] * 5, minutes, say)
    bad = {_ERRS: errs, _STALLS: stalls}
    measured = _five(seed, [bad.get(place, good) for place in range(5)], minutes, say)
    figures = {
        "bad_share": measured.figures["errs"] + measured.figures["stalls"],
        "first_token_p95_s": measured.figures["first_token_p95_s"],
        "healthy_first_token_p95_s": healthy.figures["first_token_p95_s"],
        "answered": measured.figures["answered"],
    }
    figures["ratio"] = figures["first_token_p95_s"] / figures["healthy_first_token_p95_s"]
    n_asked = measured.n_asked + healthy.n_asked
    return Measured(n_asked, figures, healthy.faults + measured.faults)


def _five(
    seed: int, specs: Sequence[DonorSpec], minutes: float, say: Callable[[str], None] | None
) -> Measured:
    async def main(run: _Run) -> Measured:
        shares = await _shares_after(run, WARM_UP_S)
        asked = run.after(WARM_UP_S)
        waits = [a.first_token_at - a.at for a in asked if a.first_token_at is not None]
        n_whole = sum(each.is_whole for each in asked)
        return run.measured(
            {
                "errs": shares[_ERRS],
                "stalls": shares[_STALLS],
                "first_token_p95_s": _percentile(waits, 0.95),
                "answered": _share(n_whole, len(asked)),
            }
        )

    return _run(seed, _plan(specs, n_requesters=4, n_apps=2), minutes * 60, main, say)


async def _shares_after(run: _Run, time: float) -> list[float]:
    """Of all requests that donors were asked after `time`, the share of each."""
    await trio.sleep_until(time)
    before = [_n_asked(donor) for donor in run.world.donors]
    await trio.sleep_until(run.until)
    n_since = [_n_asked(donor) - n for donor, n in zip(run.world.donors, before, strict=True)]
    return [_share(n, sum(n_since)) for n in n_since]


def _n_asked(donor: SimDonor) -> int:
    return len(donor.process.engine.requests) if donor.process is not None else 0


def run_liar(seed: int, minutes: float = 6.0, say: Callable[[str], None] | None = None) -> Measured:
    """Ten donors; one advertises a hundred times its speed, which is half of the others'."""
    slow = replace(MODEL, prefill_tps=MODEL.prefill_tps / 2, decode_tps=MODEL.decode_tps / 2)
    liar = DonorSpec(slow, Nature.BOASTS, boast=100.0)

    async def main(run: _Run) -> Measured:
        shares = await _shares_after(run, WARM_UP_S)
        return run.measured({"liars_share": shares[0]})

    plan = _plan([liar, *[DonorSpec(MODEL)] * 9], n_requesters=6, n_apps=2)
    return _run(seed, plan, minutes * 60, main, say)


# ---------------------------------------------------------------- many requests


def run_saturated(
    seed: int, minutes: float = 3.0, say: Callable[[str], None] | None = None
) -> Measured:
    """Tokens a second of four donors and of one, both with more requests than they can do."""
    one, four = (_throughput(seed, n, minutes, say) for n in (1, 4))
    figures = {
        "one_tokens_per_s": one.figures["tokens_per_s"],
        "four_tokens_per_s": four.figures["tokens_per_s"],
        "ratio": four.figures["tokens_per_s"] / one.figures["tokens_per_s"],
    }
    return Measured(one.n_asked + four.n_asked, figures, one.faults + four.faults)


def _throughput(
    seed: int, n_donors: int, minutes: float, say: Callable[[str], None] | None
) -> Measured:
    busy = replace(MODEL, stream_cost=0.5, n_slots=4)
    full_at = 20.0  # all queues have their length by then

    async def main(run: _Run) -> Measured:
        await trio.sleep_until(run.until)
        asked = [each for each in run.asked if each.is_whole and each.ended_at >= full_at]
        n_tokens = sum(each.end.usage.n_completion for each in asked if each.end is not None)
        return run.measured({"tokens_per_s": n_tokens / (run.until - full_at)})

    habits = replace(_HABITS, pause_s=0.05)
    plan = _plan([DonorSpec(busy)] * n_donors, n_requesters=8, n_apps=5, habits=habits)
    return _run(seed, plan, minutes * 60, main, say)


# Load figures are asked for so seldom that they are 20 s old on average, with the 2.5 s that pass
# until they are asked for; and hold for as long.
_STALE_S: Final = 35
_HOLDS_S: Final = 40


def run_herd(
    seed: int,
    minutes: float = 3.0,
    say: Callable[[str], None] | None = None,
    *,
    n_donors: int = 20,
) -> Measured:
    """Ten times as many requesters as donors, of whose load they know what it was 20 s ago."""
    spec = DonorSpec(replace(MODEL, n_slots=4, n_answer=(120, 200)))

    async def main(run: _Run) -> Measured:
        await trio.sleep_until(WARM_UP_S)
        totals = [0.0] * len(run.world.donors)
        worst = 0.0
        lately: list[list[int]] = []
        while trio.current_time() < run.until:
            queues = [_n_there(donor) for donor in run.world.donors]
            totals = [total + n for total, n in zip(totals, queues, strict=True)]
            lately = [*lately[-9:], queues]
            means = [sum(each) / len(lately) for each in zip(*lately, strict=True)]
            if len(lately) == 10:
                worst = max(worst, _over_mean(means))
            await trio.sleep(_LOOK_S)
        return run.measured(
            {
                "longest_of_10_s": worst,
                "longest": _over_mean(totals),
                "mean_queue": sum(totals) / len(totals) / (run.until - WARM_UP_S) * _LOOK_S,
            }
        )

    habits = replace(_HABITS, max_tokens=(200, 200), pause_s=1.0)
    plan = _plan([spec] * n_donors, n_requesters=10 * n_donors, n_apps=1, habits=habits)
    with (
        patch.object(defaults, "REFRESH_ASKED_S", _STALE_S),
        patch.object(defaults, "LIVE_LIFETIME_S", _HOLDS_S),
        patch.dict(adverts.LIFETIME_S, {adverts.Kind.LIVE: _HOLDS_S}),
    ):
        return _run(seed, plan, minutes * 60, main, say)


def _n_there(donor: SimDonor) -> int:
    assert donor.process is not None, "nobody goes here"
    load = donor.process.engine.load
    return load.n_running + load.n_queued


def _over_mean(queues: Sequence[float]) -> float:
    return max(queues) / (sum(queues) / len(queues)) if sum(queues) else 0.0


# ---------------------------------------------------------------- an outage of one's own

AWAY_S: Final = 20.0


def run_own_outage(
    seed: int, minutes: float = 2.5, say: Callable[[str], None] | None = None
) -> Measured:
    """The requester's own network is away for 20 s, while its apps ask."""

    async def main(run: _Run) -> Measured:
        (requester,) = run.world.requesters
        await trio.sleep_until(WARM_UP_S)
        back_at = WARM_UP_S + AWAY_S
        run.world.network.take_away(requester.host, back_at)
        await trio.sleep(NOTICED_S)
        run.world.network.give_up(requester.host)
        n_open = 0
        while trio.current_time() < run.until:
            n_open = max(n_open, _n_open(run))
            await trio.sleep(_LOOK_S)
        answered = [a for a in run.asked if a.first_token_at is not None]
        first_at = min(at for a in answered if (at := a.first_token_at or 0.0) > back_at)
        # Who asks while the network is away waits for it, too.
        late = [
            max(a.first_token_at or 0.0, back_at) - max(a.at, back_at)
            for a in answered
            if (a.first_token_at or 0.0) > back_at and a.at < back_at + _SOON_S
        ]
        return run.measured(
            {
                "breakers_open": n_open,
                "served_after_s": first_at - back_at,
                "late_p95_s": _percentile(late, 0.95),
            }
        )

    plan = _plan([DonorSpec(MODEL)] * 4, n_requesters=1, n_apps=3)
    return _run(seed, plan, minutes * 60, main, say)


_SOON_S: Final = 10.0


def _n_open(run: _Run) -> int:
    return sum(
        requester.is_resting(donor.host.peer_id)
        for requester in run.world.requesters
        for donor in run.world.donors
    )


SCENARIOS: Final[Mapping[str, Callable[..., Measured]]] = {
    "churn": run_churn,
    "bad-donors": run_bad_donors,
    "liar": run_liar,
    "saturated": run_saturated,
    "herd": run_herd,
    "small-herd": partial(run_herd, n_donors=4),
    "outage": run_own_outage,
}


def main() -> None:
    """Run one, and print what was measured as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulation.scenarios", description=__doc__
    )
    parser.add_argument("name", choices=list(SCENARIOS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="virtual ones; the default is the scenario's")
    parser.add_argument("--trace", action="store_true", help="all that happens, to standard error")
    arguments = parser.parse_args()
    minutes = {} if arguments.minutes is None else {"minutes": arguments.minutes}
    say = _say if arguments.trace else None
    measured = SCENARIOS[arguments.name](arguments.seed, say=say, **minutes)
    print(json.dumps(asdict(measured), ensure_ascii=False))


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
