"""All bootstrap peers are dead, and the peer that asks starts anew: it has only what it remembers.
Start at `DRILLS`.
"""

from __future__ import annotations

from typing import Final

import trio

from benchmarks.drills.app import ask, whole
from benchmarks.drills.peers import Lane, Network, open_network
from benchmarks.drills.table import Drill, Result, Scale
from benchmarks.drills.trials import Outcome, result_of

FLAGS: Final = ("--decode-tps", "100")
N_DONORS: Final = 2
LIMIT_S: Final = 5.0


async def run(scale: Scale) -> Result:
    """See `DRILLS`."""
    async with open_network(scale.folder, *FLAGS) as network:
        (lane,) = network.lanes
        await lane.fill(N_DONORS)
        (bootstrap,) = (peer for peer in network.group.peers if peer.name == "bootstrap")
        bootstrap.process.kill()
        await bootstrap.process.wait()
        outcomes = [
            await _restart(network, lane, is_killed=number % 2 == 1)
            for number in range(scale.times(20, 2))
        ]
    return result_of(outcomes, good="answered", time="answer", p95_s=LIMIT_S, worst_s=LIMIT_S)


async def _restart(network: Network, lane: Lane, *, is_killed: bool) -> Outcome:
    """End the asking peer, start it again, and ask as soon as its API is there.

    The first is stopped in order: it writes down whom it knows at its end, else every 10 s.
    """
    what = "killed" if is_killed else "stopped"
    assert network.asker is not None, "started by `open_network`"
    process = network.asker.process
    if is_killed:
        process.kill()
    else:
        process.terminate()
    await process.wait()
    began = trio.current_time()
    await network.start_asker()
    question = await ask(network.api, whole(lane.chat("hello", 4)))
    problem = "" if question.is_answered else question.problem
    return Outcome(what, trio.current_time() - began, problem)


DRILLS: Final = (
    Drill(
        "no-bootstrap",
        "all bootstrap peers dead, the asking peer restarted",
        "remembered donors reached <= 5 s",
        run,
    ),
)
