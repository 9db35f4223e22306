"""A donor frozen by SIGSTOP while it has a request: queued, in prefill, in the stream. Start at
`DRILLS`.

A frozen process keeps its connections open and says nothing: only the requester's own patience
tells it from one that thinks. `network.py` has the same with links that are cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

import trio

from benchmarks.drills.app import Question
from benchmarks.drills.cut import judge_continued, judge_failed
from benchmarks.drills.peers import Donor, Lane, open_network, prompt_of, wait_until
from benchmarks.drills.table import Drill, Result, Scale
from benchmarks.drills.trials import Outcome, result_of

N_LANES: Final = 6  # nearly all of a trial is waiting
FLAGS: Final = ("--prefill-tps", "1000", "--decode-tps", "16", "--slots", "1")
PHASES: Final = ("queued", "prefill", "stream")
PREFILL_S: Final = 0.6
PROMPT_TOKENS: Final = {"queued": 40, "prefill": 600, "stream": 40}
N_TOKENS: Final = 24
# Of the answer that makes others wait: it lasts until the donor is found to be frozen.
BLOCKING_TOKENS: Final = 400
BLOCKED_WITHIN_S: Final = 10.0
LIMIT_S: Final = 12.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What the request is in when its donor freezes, after this share of the phase, and whether
    there is another donor.
    """

    phase: str
    share: float
    has_twin: bool
    prompt: str

    @property
    def what(self) -> str:
        return f"{self.phase} {self.share:.2f}, {'a twin' if self.has_twin else 'alone'}"


async def run(scale: Scale) -> Result:
    """See `DRILLS`."""
    dice = scale.dice("frozen")
    trials = [_trial(dice, number) for number in range(scale.times(60, 4))]
    async with open_network(scale.folder, *FLAGS, n_lanes=N_LANES) as network:
        outcomes = await network.in_lanes(trials, _attempt)
    return result_of(
        outcomes, good="went on or said why", time="silence", p95_s=LIMIT_S, worst_s=LIMIT_S
    )


def _trial(dice: Random, number: int) -> Trial:
    phase = PHASES[number % len(PHASES)]
    prompt = prompt_of(dice, PROMPT_TOKENS[phase])
    return Trial(phase, dice.random(), number // len(PHASES) % 2 == 0, prompt)


async def _attempt(lane: Lane, trial: Trial) -> Outcome:
    await lane.fill(2 if trial.has_twin else 1)
    victim = next(iter(lane.donors.values()))
    # Asked first, so that it is known who is to freeze, but it may go on elsewhere.
    body = lane.chat(trial.prompt, N_TOKENS, provider={"order": [victim.peer_id]})
    question = Question(body)
    frozen_at = 0.0
    async with trio.open_nursery() as nursery:
        if trial.phase == "queued":
            await _occupy(lane, victim, nursery)
        nursery.start_soon(question.ask, lane.network.api)
        await _wait_phase(trial, question, victim)
        victim.freeze()
        frozen_at = trio.current_time()
        await question.wait(lambda: False)
        nursery.cancel_scope.cancel()  # whoever made it wait
    victim.kill()
    if not trial.has_twin:
        outcome = _judge_alone(trial, question, frozen_at)
    else:
        uncut = await lane.uncut({**body, "provider": {}}, 1)
        outcome = judge_continued(trial.what, question, uncut, frozen_at)
    return outcome


def _judge_alone(trial: Trial, question: Question, frozen_at: float) -> Outcome:
    """It failed with a reason; before the stream had begun as an HTTP error."""
    assert question.ended_at is not None, "waited for"
    if question.is_hanging or not question.error:
        return judge_failed(trial.what, question, question, frozen_at)
    return Outcome(trial.what, question.ended_at - frozen_at)


async def _occupy(lane: Lane, donor: Donor, nursery: trio.Nursery) -> None:
    """Have the donor's only slot taken by an answer that nobody else may give."""
    only = {"only": [donor.peer_id]}
    blocking = Question(lane.chat("long", BLOCKING_TOKENS, provider=only))
    nursery.start_soon(blocking.ask, lane.network.api)
    assert await blocking.wait(lambda: blocking.stream.moments), blocking.problem


async def _wait_phase(trial: Trial, question: Question, victim: Donor) -> None:
    """Return when the request is so far in its phase."""
    if trial.phase == "queued":
        await wait_until(victim.has_queued, BLOCKED_WITHIN_S)
        await trio.sleep(trial.share)
    elif trial.phase == "prefill":
        await question.wait(lambda: question.donor)
        await trio.sleep(trial.share * PREFILL_S / 2)
    else:
        n_pieces = 1 + int(trial.share * N_TOKENS / 2)
        await question.wait(lambda: len(question.stream.moments) >= n_pieces)


DRILLS: Final = (
    Drill(
        "frozen",
        "SIGSTOP the donor while the request is queued, in prefill, in the stream; with and "
        "without a twin",
        "went on, or failed with a reason, <= 12 s; 0 hangs",
        run,
    ),
)
