"""A donor killed while the app reads its answer, with and without a twin. Start at `DRILLS`.

Before it is cut every answer is asked for once and left alone: that run says where its tokens end,
and what must come out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import trio

from benchmarks.drills.app import Question
from benchmarks.drills.peers import Lane, open_network, prompt_of
from benchmarks.drills.stream import End
from benchmarks.drills.table import Drill, Result, Scale
from benchmarks.drills.trials import Outcome, result_of

N_LANES: Final = 3
# A token every 62 ms: slower than the ticks in which they travel, so nearly every event of the
# stream is one token, and the app can tell which tokens it has.
FLAGS: Final = ("--prefill-tps", "1000", "--decode-tps", "16")
N_TOKENS: Final = 32
PROMPT_TOKENS: Final = 40
STOP_CHARS: Final = 12  # two or three words: too many to come earlier by chance
GAP_S: Final = 3.0
ERROR_S: Final = 1.0
PLACES: Final = ("token 1", "the middle", "the last but one")
VARIANTS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("plain", {}),
    ("drawn", {"temperature": 1.0, "seed": 7}),
    ("n = 2", {"n": 2, "temperature": 1.0, "seed": 7}),
    ("logprobs", {"logprobs": True, "top_logprobs": 2}),
    ("stop", {}),  # at what the plain answer has near its end: see `_body`
    ("JSON", {"response_format": {"type": "json_object"}}),
)


@dataclass(frozen=True, slots=True)
class Trial:
    """Where in which answer its donor dies."""

    place: str
    variant: int
    prompt: str

    @property
    def what(self) -> str:
        return f"{VARIANTS[self.variant][0]}, {self.place}"


async def run_with_twin(scale: Scale) -> Result:
    """See `DRILLS`."""
    return await _run(scale, n_donors=2, n=scale.times(150, 6))


async def run_alone(scale: Scale) -> Result:
    """See `DRILLS`."""
    return await _run(scale, n_donors=1, n=scale.times(150, 3))


async def _run(scale: Scale, *, n_donors: int, n: int) -> Result:
    dice = scale.dice(f"cut {n_donors}")
    trials = [
        Trial(
            place=PLACES[number % len(PLACES)],
            # Shifted, so that each variant is cut at each place.
            variant=(number + number // len(VARIANTS)) % len(VARIANTS),
            prompt=prompt_of(dice, PROMPT_TOKENS),
        )
        for number in range(n)
    ]

    async def attempt(lane: Lane, trial: Trial) -> Outcome:
        return await _attempt(lane, trial, n_donors)

    async with open_network(scale.folder, *FLAGS, n_lanes=N_LANES) as network:
        outcomes = await network.in_lanes(trials, attempt)
    if n_donors > 1:
        return result_of(outcomes, good="whole and equal", time="gap", p95_s=GAP_S)
    return result_of(outcomes, good="said so", time="error", p95_s=ERROR_S, worst_s=ERROR_S)


async def _attempt(lane: Lane, trial: Trial, n_donors: int) -> Outcome:
    body = await _body(lane, trial, n_donors)
    uncut = await lane.uncut(body, n_donors)
    question, killed_at = await cut(lane, body, chars_before(uncut, trial.place))
    judge = judge_continued if n_donors > 1 else judge_failed
    if killed_at is None:
        return Outcome(trial.what, None, question.problem or "it was never cut")
    return judge(trial.what, question, uncut, killed_at)


async def _body(lane: Lane, trial: Trial, n_donors: int) -> Mapping[str, Any]:
    name, more = VARIANTS[trial.variant]
    body = lane.chat(trial.prompt, N_TOKENS, **more)
    if name != "stop":
        return body
    plain = await lane.uncut(body, n_donors)
    return {**body, "stop": [plain.stream.text[-STOP_CHARS:]]}


async def cut(lane: Lane, body: Mapping[str, Any], n_chars: int) -> tuple[Question, float | None]:
    """Ask, and kill the donor the instant so much text has come; when that was."""
    killed_at: list[float] = []

    def kill(question: Question) -> None:
        if not killed_at and question.stream.moments and len(question.stream.text) >= n_chars:
            lane.donors[question.donor].kill()
            killed_at.append(trio.current_time())

    question = Question(body, on_news=kill)
    await question.ask(lane.network.api)
    return question, killed_at[0] if killed_at else None


def chars_before(uncut: Question, place: str) -> int:
    """How much of the text has come when its donor is to die."""
    lengths = sorted({length for _, length in uncut.stream.moments})
    if place == PLACES[0]:
        return lengths[0]
    return lengths[len(lengths) // 2] if place == PLACES[1] else lengths[max(0, len(lengths) - 2)]


def judge_continued(what: str, question: Question, uncut: Question, killed_at: float) -> Outcome:
    """It must be whole, valid and what it would have been."""
    stream = question.stream
    was_hit = len(question.route) > 1
    problem = question.problem
    if not problem and question.essence != uncut.essence:
        problem = "another answer than uncut"
    gap_s = None if problem else stream.longest_pause_s(killed_at)
    return Outcome(what, gap_s, question.with_route(problem), was_hit)


def judge_failed(what: str, question: Question, uncut: Question, killed_at: float) -> Outcome:
    """It must say that it failed, or be whole if nothing was missing any more."""
    stream = question.stream
    problem = ", ".join(stream.faults)
    if question.is_hanging or stream.end is End.OPEN:
        problem = question.problem or "no end"
    elif stream.end is End.WHOLE and question.essence != uncut.essence:
        problem = "a part was taken for the whole"
    elif any(
        not uncut.stream.choices[number].text.startswith(choice.text)
        for number, choice in stream.choices.items()
    ):
        problem = "another text than uncut"
    was_hit = stream.end is End.FAILED
    took_s = stream.error_at - killed_at if was_hit and stream.error_at is not None else None
    return Outcome(what, took_s, question.with_route(problem), was_hit)


DRILLS: Final = (
    Drill(
        "killed-in-stream",
        "SIGKILL the donor at token 1, in the middle, at the last but one; a twin is there",
        "100 % whole, valid, byte-equal to uncut; gap p95 <= 3 s",
        run_with_twin,
    ),
    Drill(
        "killed-alone",
        "the same without a twin",
        "0 silent truncations; error event <= 1 s",
        run_alone,
    ),
)
