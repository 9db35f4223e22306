"""How well providers are found in the DHT, beside libp2p's own under the same conditions.

`python -m benchmarks.dht [--quick] [--peers N …] [--conditions NAME …] [--no-stock] [--json FILE]`.
Start at `run_cell`: one network of real hosts in one process, which lives for one condition.

Time is that of `cpu_clock`: all peers share one core, other programs do not count. Everybody asks
for every key once: libp2p's answers a second time from what it heard the first, whoever has left.
What a peer stores itself it answers at once, too, which at 20 peers and fewer is everything.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import Final

import psutil
import trio

from benchmarks.cpu_clock import run_on_own_clock
from benchmarks.dht_lab import Lab, Member, open_lab
from benchmarks.report import Row, parse_arguments, report
from tokenplace import defaults

SIZES: Final = (3, 10, 30, 100)
QUICK_SIZES: Final = (3, 10, 30)
# failing: 20 % of the peers are dead, 20 % take streams and never answer. churn: 30 % leave one by
# one, and others come. squatters: 20 a key, announced before the donors. hostile: all three.
CONDITIONS: Final = ("well", "failing", "churn", "squatters", "hostile")
DEFAULT_CONDITIONS: Final = ("well", "hostile")
FAILING: Final = 0.2  # of the peers are dead, as many are silent
REPLACED: Final = 0.3
N_SQUATTERS: Final = 20
N_KEYS: Final = 6
N_DONORS: Final = 3  # a key
N_ABSENT: Final = 10
# For look-ups, in one cell: libp2p's take half a minute each where peers are silent.
BUDGET_S: Final = 90.0
QUICK_BUDGET_S: Final = 15.0
ABSENT_SHARE: Final = 1 / 3  # of the same time again, for keys that nobody provides
LOOKUP_LIMIT_S: Final = 60.0
AIMED_AT: Final = 100  # peers
ANY_AIM: Final = 99.9
ALL_AIM: Final = 98.0
P50_AIM_MS: Final = 150.0
P95_AIM_MS: Final = 1000.0
MAX_AIM_MS: Final = 4000.0
# The upkeep of a hundred peers fills the core that look-ups are measured on: pings on 6,000 ends of
# connections, a hundred tables looked through. A tenth of it is left, in both DHTs.
SLOWER_UPKEEP: Final = 10


@dataclass(frozen=True, slots=True)
class Cell:
    """What is measured: so many peers, one condition, one of the DHTs."""

    n_peers: int
    condition: str
    is_stock: bool
    budget_s: float

    def is_(self, condition: str) -> bool:
        """Does this cell have that condition, alone or among others?"""
        return self.condition in (condition, "hostile")


@dataclass(slots=True)
class Outcome:
    """Times in milliseconds of this clock, memory in MB."""

    lookups_ms: list[float] = field(default_factory=list)
    absent_ms: list[float] = field(default_factory=list)
    n_any: int = 0
    n_all: int = 0
    join_ms: float = 0.0
    cpu_ms: float = 0.0
    memory_mb: float = 0.0
    n_connections: float = 0.0


async def run_cell(cell: Cell, seed: int = 1) -> Outcome:
    """One network from its birth to its end."""
    outcome = Outcome()
    memory, began_at = psutil.Process().memory_info().rss, trio.current_time()
    async with open_lab(cell.n_peers, is_stock=cell.is_stock, seed=seed) as lab:
        outcome.join_ms = (trio.current_time() - began_at) * 1000 / cell.n_peers
        grown = psutil.Process().memory_info().rss - memory
        outcome.memory_mb = grown / cell.n_peers / 1e6
        keys = [lab.dice.randbytes(32) for _ in range(N_KEYS)]
        if cell.is_("squatters"):
            await squat(lab, keys)
        n_failing = int(cell.n_peers * FAILING) if cell.is_("failing") else 0
        order = lab.dice.sample(lab.living, len(lab.living))
        dead, silent, staying = (
            order[:n_failing],
            order[n_failing : 2 * n_failing],
            order[2 * n_failing :],
        )
        donors = await donate(keys, staying)
        await lab.kill(dead)
        lab.silence(silent)
        await look_up(lab, cell, donors, outcome)
        await look_for_nothing(lab, cell, outcome)
        outcome.n_connections = lab.mean_connections()
    return outcome


async def squat(lab: Lab, keys: list[bytes]) -> None:
    """Announce false providers of `keys`: peers that leave, and take nothing back."""
    squatters = [await lab.add() for _ in range(N_SQUATTERS)]
    for squatter in squatters:
        for key in keys:
            await squatter.dht.provide(key)
    await lab.kill(squatters)


async def donate(keys: list[bytes], peers: list[Member]) -> dict[bytes, set[Member]]:
    """Have `N_DONORS` of `peers` provide each key, all but one where there are few."""
    n_donors = min(N_DONORS, len(peers) - 1)
    donors: dict[bytes, set[Member]] = {}
    for number, key in enumerate(keys):
        donors[key] = {peers[(number * n_donors + i) % len(peers)] for i in range(n_donors)}
        for donor in donors[key]:
            await donor.dht.provide(key)
    return donors


async def look_up(lab: Lab, cell: Cell, donors: dict[bytes, set[Member]], outcome: Outcome) -> None:
    """Have everybody who lives ask for every key, in any order, while peers come and leave."""
    waiting = [(asker, key) for key in donors for asker in lab.living if asker not in donors[key]]
    leavers = [peer for peer in lab.living if not any(peer in some for some in donors.values())]
    n_replaced = round(cell.n_peers * REPLACED) if cell.is_("churn") else 0
    leavers = lab.dice.sample(leavers, min(n_replaced, len(leavers)))
    pause = math.ceil(len(waiting) / (len(leavers) + 1))
    cpu_began, ends_at = time.thread_time(), trio.current_time() + cell.budget_s

    async def replace(leaver: Member) -> None:
        await lab.kill([leaver])
        newcomer = await lab.add()
        waiting.extend((newcomer, key) for key in donors)

    async with trio.open_nursery() as replacing:
        while waiting:
            asker, key = waiting.pop(lab.dice.randrange(len(waiting)))
            if asker.leaving.is_set():
                continue
            await look_up_one(asker, key, donors[key], outcome)
            if trio.current_time() > ends_at:
                break
            if leavers and len(outcome.lookups_ms) % pause == 0:
                leaver = leavers.pop()
                leaver.leaving.set()  # now, so that it is not chosen before the task has begun
                replacing.start_soon(replace, leaver)
        replacing.cancel_scope.cancel()
    outcome.cpu_ms = (time.thread_time() - cpu_began) * 1000 / len(outcome.lookups_ms)


async def look_up_one(asker: Member, key: bytes, donors: set[Member], outcome: Outcome) -> None:
    """Have `asker` ask for `key`."""
    began_at = trio.current_time()
    found: set[str] = set()
    with trio.move_on_after(LOOKUP_LIMIT_S):
        found = await asker.dht.find(key)
    outcome.lookups_ms.append((trio.current_time() - began_at) * 1000)
    expected = {donor.host.peer_id for donor in donors}
    outcome.n_any += bool(found & expected)
    outcome.n_all += found >= expected


async def look_for_nothing(lab: Lab, cell: Cell, outcome: Outcome) -> None:
    """Have some ask for keys that nobody provides."""
    ends_at = trio.current_time() + cell.budget_s * ABSENT_SHARE
    for _ in range(N_ABSENT):
        began_at = trio.current_time()
        with trio.move_on_after(LOOKUP_LIMIT_S):
            await lab.dice.choice(lab.living).dht.find(lab.dice.randbytes(32))
        outcome.absent_ms.append((trio.current_time() - began_at) * 1000)
        if trio.current_time() > ends_at:
            break


# ---------------------------------------------------------------- the table


def rows_of(cell: Cell, ours: Outcome, stock: Outcome | None) -> list[Row]:
    """The lines of one size and condition, against the aims where these apply."""
    has_aim = cell.n_peers >= AIMED_AT
    rows = []

    def add(what: str, figures: list[float], unit: str, is_met: bool | None = None) -> None:
        mine, rival = figures[0], figures[1] if stock else None
        ratio = mine / rival if rival and unit != "%" else None
        rows.append(
            Row(
                f"{cell.n_peers} {cell.condition}: {what}",
                len(ours.lookups_ms),
                mine,
                rival,
                ratio,
                unit,
                is_met if has_aim else None,
            )
        )

    both = [ours, stock] if stock else [ours]
    found_any = [100 * one.n_any / len(one.lookups_ms) for one in both]
    found_all = [100 * one.n_all / len(one.lookups_ms) for one in both]
    p50, p95, slowest = ([share_of(one, share) for one in both] for share in (0.5, 0.95, 1.0))
    add("found any", found_any, "%", found_any[0] >= ANY_AIM)
    add("found all", found_all, "%", found_all[0] >= ALL_AIM)
    add("p50", p50, "ms", p50[0] <= P50_AIM_MS)
    add("p95", p95, "ms", p95[0] <= P95_AIM_MS)
    add("max", slowest, "ms", slowest[0] <= MAX_AIM_MS)
    add("look-ups made", [len(one.lookups_ms) for one in both], "")
    add("absent key", [median(one.absent_ms) for one in both], "ms")
    add("CPU a look-up and what goes on", [one.cpu_ms for one in both], "ms")
    add("to join", [one.join_ms for one in both], "ms")
    add("memory a peer", [one.memory_mb for one in both], "MB")
    add("connections a peer", [one.n_connections for one in both], "")
    return rows


def share_of(outcome: Outcome, share: float) -> float:
    """The time that this share of the look-ups took at most."""
    ordered = sorted(outcome.lookups_ms)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def run_in_process(cell: Cell) -> Outcome:
    """The entry of a process that lives for one cell."""
    logging.disable(logging.CRITICAL)  # libp2p reports every peer that is gone
    vars(defaults)["KEEPALIVE_INTERVAL_S"] *= SLOWER_UPKEEP
    vars(defaults)["TABLE_REFRESH_S"] *= SLOWER_UPKEEP
    return run_on_own_clock(run_cell, cell)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be chosen besides."""
    parser.add_argument("--peers", type=int, nargs="+", metavar="N", help="sizes; 3 and more")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=DEFAULT_CONDITIONS)
    parser.add_argument("--no-stock", action="store_true", help="leave libp2p's DHT out")


def main() -> None:
    """Measure and report."""
    arguments = parse_arguments(__doc__ or "", add_options=add_options)
    sizes = arguments.peers or (QUICK_SIZES if arguments.quick else SIZES)
    budget_s = QUICK_BUDGET_S if arguments.quick else BUDGET_S
    rows: list[Row] = []
    # A process for each, so that memory is that of its own peers.
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as processes:
        for n_peers in sizes:
            for condition in arguments.conditions:
                cells = [Cell(n_peers, condition, is_stock, budget_s) for is_stock in (False, True)]
                outcomes = list(processes.map(run_in_process, cells[: 2 - arguments.no_stock]))
                rows += rows_of(cells[0], outcomes[0], (*outcomes[1:], None)[0])
    report("finding providers, beside libp2p's DHT", rows, arguments.json)


if __name__ == "__main__":
    main()
