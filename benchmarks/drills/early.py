"""A donor killed before the first token of its answer has come. Start at `DRILLS`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import trio

from benchmarks.drills.app import Question, ask, whole
from benchmarks.drills.peers import Donor, Lane, open_network, prompt_of
from benchmarks.drills.table import Drill, Result, Scale
from benchmarks.drills.trials import Outcome, result_of

N_LANES: Final = 3
N_DONORS: Final = 2
FLAGS: Final = ("--prefill-tps", "1000", "--decode-tps", "100")
PREFILL_S: Final = 0.6
PROMPT_TOKENS: Final = 600
ANSWER_TOKENS: Final = 4
MOMENTS: Final = ("asked", "accepted", "prefill")
ASKED_S: Final = 0.05  # in about so long a request has been sealed, sent and accepted
EXTRA_S: Final = 3.0
N_UNCUT: Final = 3


@dataclass(frozen=True, slots=True)
class Trial:
    """When a donor dies: at this share of a moment. A request that does not stream shows its app
    no moments, so there the donor that has it is killed. of: which donor, if nobody knows yet who
    has the request.
    """

    moment: str
    share: float
    of: int
    is_streamed: bool
    prompt: str

    @property
    def what(self) -> str:
        return f"{self.moment} {self.share:.2f}{'' if self.is_streamed else ', not streamed'}"


async def run(scale: Scale) -> Result:
    """See `DRILLS`."""
    dice = scale.dice("early")
    trials = [
        Trial(
            moment=MOMENTS[number % len(MOMENTS)],
            share=dice.random(),
            of=dice.randrange(N_DONORS),
            is_streamed=number % 4 < 3,
            prompt=prompt_of(dice, PROMPT_TOKENS),
        )
        for number in range(scale.times(100, 6))
    ]
    uncut_prompts = [prompt_of(dice, PROMPT_TOKENS) for _ in range(N_UNCUT)]
    async with open_network(scale.folder, *FLAGS, n_lanes=N_LANES) as network:
        lane = network.lanes[0]
        bodies = [lane.chat(prompt, ANSWER_TOKENS) for prompt in uncut_prompts]
        usual_s = median([_first_text_s(await lane.uncut(body, 1)) for body in bodies])

        async def attempt(lane: Lane, trial: Trial) -> Outcome:
            return await _attempt(lane, trial, usual_s)

        outcomes = await network.in_lanes(trials, attempt)
    return result_of(outcomes, good="answered", time="extra", p95_s=EXTRA_S)


def _first_text_s(question: Question) -> float:
    assert question.first_text_s is not None, "it was answered"
    return question.first_text_s


async def _attempt(lane: Lane, trial: Trial, usual_s: float) -> Outcome:
    await lane.fill(N_DONORS)
    body: Mapping[str, Any] = lane.chat(trial.prompt, ANSWER_TOKENS)
    body = body if trial.is_streamed else whole(body)
    question = Question(body)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(question.ask, lane.network.api)
        await _kill(lane, trial, question)
    again = await ask(lane.network.api, body)
    problem = question.problem
    if not question.is_answered:
        problem = problem or f"HTTP {question.status}"
    elif question.essence != again.essence:
        problem = "another answer than the next time"
    extra_s = None if problem else max(0.0, _first_text_s(question) - usual_s)
    return Outcome(
        trial.what, extra_s, question.with_route(problem), was_hit=len(question.route) > 1
    )


async def _kill(lane: Lane, trial: Trial, question: Question) -> None:
    """Kill a donor at the trial's moment."""
    donors = list(lane.donors.values())
    victim = donors[trial.of]
    if trial.moment == "asked":
        await trio.sleep(trial.share * ASKED_S)
    elif trial.is_streamed:
        await question.wait(lambda: question.donor)
        victim = lane.donors.get(question.donor, victim)
    else:
        victim = await _holder(donors, question) or victim
    if trial.moment == "prefill":
        await trio.sleep(trial.share * PREFILL_S)
    victim.kill()


async def _holder(donors: list[Donor], question: Question) -> Donor | None:
    """The donor that says it is busy; None if the answer came before one did."""
    while question.ended_at is None:
        for donor in donors:
            if not await donor.is_free():
                return donor
    return None


DRILLS: Final = (
    Drill(
        "killed-early",
        "SIGKILL the donor before token 1; two donors",
        "100 % answered; extra time p95 <= 3 s",
        run,
    ),
)
