"""`python -m benchmarks.simulation SEED...` replays seeds with all that happens in them;
`--seeds N [--from FIRST] [--json]` runs many on all processors and names those that fail.

Exit status 1 if anything is wrong in any.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from benchmarks.simulation.world import Outcome, run_world

SHOWN_EVERY = 100


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one seed, small enough to be handed to another process."""

    seed: int
    digest: str
    virtual_s: float
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: tuple[str, ...] = ()

    @property
    def replay(self) -> str:
        """The command that shows it again."""
        return f"python -m benchmarks.simulation {self.seed}"


def judge(seed: int) -> Verdict:
    """Run one seed. What a background task raised is a fault, too."""
    try:
        outcome = run_world(seed)
    except Exception as error:  # whatever it is, it is what this looks for
        return Verdict(seed, "", 0.0, faults=(f"the world ended: {_told(error)}",))
    return Verdict(seed, outcome.digest, outcome.virtual_s, outcome.outcomes, tuple(outcome.faults))


def judge_all(seeds: range, n_processes: int | None = None) -> Iterator[Verdict]:
    """Run many, on all processors unless said otherwise, in order."""
    with ProcessPoolExecutor(n_processes) as pool:
        yield from pool.map(judge, seeds, chunksize=4)


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description=__doc__)
    parser.add_argument("seed", type=int, nargs="*", help="replay it, and print its whole trace")
    parser.add_argument("--seeds", type=int, metavar="N", help="run so many")
    parser.add_argument("--from", type=int, default=0, metavar="FIRST", dest="first")
    parser.add_argument("--json", action="store_true", help="what came of many, for programs")
    arguments = parser.parse_args()
    if arguments.seeds:
        seeds = range(arguments.first, arguments.first + arguments.seeds)
        return _run_many(seeds, as_json=arguments.json)
    if not arguments.seed:
        parser.error("name a seed, or say --seeds N")
    return max(map(_replay, arguments.seed))


def _replay(seed: int) -> int:
    outcome = run_world(seed, say=print)
    for asked in outcome.asked:
        if asked.outcome != "whole" and asked.error is not None:
            print(f"{asked.app} request {asked.number}: {asked.error!r}")
    print(f"seed {seed}: {_counts(outcome.outcomes)}; trace {outcome.digest[:16]}")
    _print_faults(outcome)
    return 1 if outcome.faults else 0


def _print_faults(outcome: Outcome) -> None:
    for fault in outcome.faults:
        print(f"FAULT {fault}")
    for asked in outcome.asked:
        if asked.is_foreign:
            print(_told(asked.error))


def _run_many(seeds: range, *, as_json: bool) -> int:
    started = time.monotonic()
    totals: Counter[str] = Counter()
    failed: list[Verdict] = []
    virtual_s = 0.0
    for n_done, verdict in enumerate(judge_all(seeds), start=1):
        totals += verdict.outcomes
        virtual_s += verdict.virtual_s
        if verdict.faults:
            failed.append(verdict)
        if n_done % SHOWN_EVERY == 0:
            print(f"{n_done} of {len(seeds)} seeds, {len(failed)} failed", file=sys.stderr)
    if as_json:
        faults = [f"{each.replay}: {each.faults[0]}" for each in failed]
        print(json.dumps({"outcomes": totals, "virtual_s": virtual_s, "faults": faults}))
        return 1 if failed else 0
    for each in failed:
        print(f"seed {each.seed} FAILED: {each.faults[0]}; replay: {each.replay}")
    seconds = time.monotonic() - started
    print(
        f"{len(seeds)} seeds, {totals.total()} requests ({_counts(totals)}), "
        f"{virtual_s / 3600:.1f} virtual hours in {seconds:.0f} s; {len(failed)} seeds failed"
    )
    return 1 if failed else 0


def _counts(outcomes: Counter[str]) -> str:
    return ", ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common())


def _told(error: BaseException | None) -> str:
    return "" if error is None else "".join(traceback.format_exception(error))


if __name__ == "__main__":
    sys.exit(main())
