"""A donor of a real model killed while the app reads its answer. Start at `DRILLS`.

The twin computes the part it was given in one go, not token by token, so the last bits of its
logits differ, and where two tokens are about equally likely it may go on with the other one. So
what is looked at is the seam: every token there once, and up to where the two runs part the same
ones; there the other run's token must have been nearly as likely.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.drills.app import Question
from benchmarks.drills.cut import PLACES, chars_before, cut
from benchmarks.drills.fake_peer import ModelFile
from benchmarks.drills.peers import Lane, open_network
from benchmarks.drills.stream import Token
from benchmarks.drills.table import Drill, Result, Scale, skipped
from benchmarks.drills.trials import Outcome, result_of
from tokenplace.cli.processes import UP
from tokenplace.models.catalogue import DEFAULT_MODEL
from tokenplace.settings import default_home, models_dir_of

FLAGS: Final = ("--no-api", "--threads", "1", "--parallel", "2")
N_DONORS: Final = 2
N_TOKENS: Final = 64
GAP_S: Final = 5.0  # with a prefill of what was delivered, on a thread of its own
NEAR: Final = 0.2  # of ln p: what the last bits of logits may turn around
PROMPTS: Final = (
    "Tell me about lighthouses.",
    "Write a poem about the sea at night.",
    "Explain why leaves are green.",
    "List ten animals and say where they live.",
    "What did people eat in ancient Rome?",
    "Tell a story about a fox and a clockmaker.",
)


@dataclass(frozen=True, slots=True)
class Trial:
    """Where in which answer its donor dies."""

    place: str
    prompt: str


async def run(scale: Scale) -> Result:
    """See `DRILLS`."""
    model = default_model()
    if model is None:
        return skipped(f"{DEFAULT_MODEL.file_name} is not on this machine: run make setup")
    dice = scale.dice("real model")
    trials = [
        Trial(PLACES[(number + 1) % len(PLACES)], dice.choice(PROMPTS))
        for number in range(scale.times(12, 1))
    ]
    async with open_network(scale.folder, *FLAGS, n_lanes=0, donor_program=UP) as network:
        network.lanes.append(Lane(network, model))
        outcomes = await network.in_lanes(trials, _attempt)
    return result_of(outcomes, good="whole, seam good", time="gap", p95_s=GAP_S)


def default_model() -> ModelFile | None:
    """The model that `make` has put here, or the user; None if neither has."""
    os.environ.setdefault("TOKENPLACE_MODELS_DIR", str(Path(".cache/models").absolute()))
    path = models_dir_of(default_home()) / DEFAULT_MODEL.file_name
    return ModelFile(path, DEFAULT_MODEL.artifact) if path.is_file() else None


async def _attempt(lane: Lane, trial: Trial) -> Outcome:
    more: dict[str, Any] = {"logprobs": True, "top_logprobs": 5}
    body = lane.chat(trial.prompt, N_TOKENS, **more)
    uncut = await lane.uncut(body, N_DONORS)
    question, killed_at = await cut(lane, body, chars_before(uncut, trial.place))
    what = f"{trial.prompt!r}, {trial.place}"
    if killed_at is None:
        return Outcome(what, None, question.problem or "it was never cut")
    was_hit = len(question.route) > 1
    problem = question.problem or seam_problem(question, uncut)
    gap_s = None if problem else question.stream.longest_pause_s(killed_at)
    return Outcome(what, gap_s, question.with_route(problem), was_hit)


def seam_problem(question: Question, uncut: Question) -> str:
    """What is wrong with the tokens of an answer that was cut; empty if nothing is."""
    choice, usage = question.stream.choices[0], question.stream.usage
    if usage is None or usage["completion_tokens"] != N_TOKENS or len(choice.tokens) != N_TOKENS:
        return f"{len(choice.tokens)} tokens instead of {N_TOKENS}"
    written = b"".join(token.raw for token in choice.tokens)
    if written.decode("utf-8", "replace") != choice.text:
        return "its text is not that of its tokens"
    return _parting(choice.tokens, uncut.stream.choices[0].tokens)


def _parting(tokens: Sequence[Token], others: Sequence[Token]) -> str:
    """Where two runs part, both tokens must have been about equally likely."""
    for place, (token, other) in enumerate(zip(tokens, others, strict=True)):
        if token.raw == other.raw:
            continue
        logprob = other.top.get(token.raw)
        if logprob is None or other.logprob - logprob > NEAR:
            return f"token {place} is not what the uncut run has, nor about as likely there"
        return ""
    return ""


DRILLS: Final = (
    Drill(
        "killed-real-model",
        "SIGKILL the donor of a real model in the stream; a twin is there",
        "100 % whole and valid, no seam in the tokens; gap p95 <= 5 s",
        run,
    ),
)
