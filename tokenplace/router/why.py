"""Why a donor was asked: the answer to "why this one?". Start at `Why`.

Pure. Written down with each attempt, and shown to people; it holds no text of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Rule(StrEnum):
    """What decided; one closed list."""

    OWN = "own"
    WISHED = "wished"
    SAME_PATH = "same_path"
    ONLY_ONE = "only_one"
    ONLY_MEASURED = "only_measured"
    DRAWN = "drawn"
    BETTER_OF_TWO = "better_of_two"
    AFFINITY = "affinity"
    NEWCOMER = "newcomer"
    TRIAL = "trial"
    LEAST_BAD = "least_bad"
    HEDGE = "hedge"


_SAYS: Final = {
    Rule.OWN: "this peer's own engine goes first",
    Rule.WISHED: "the request wishes it",
    Rule.SAME_PATH: "its path broke while it answered, and it keeps what it has computed",
    Rule.ONLY_ONE: "nobody else was left",
    Rule.ONLY_MEASURED: "nobody else was ever measured, and newcomers get a small share",
    Rule.DRAWN: "nobody was ever measured, and all are of one network: drawn by lot",
    Rule.BETTER_OF_TWO: "of two drawn among the best it was the better, or had the longer odds",
    Rule.AFFINITY: "it holds the beginning of this conversation",
    Rule.NEWCOMER: "it was never measured, and newcomers get a small share",
    Rule.TRIAL: "it failed before and has rested: a trial",
    Rule.LEAST_BAD: "all rest, and it is the least bad",
    Rule.HEDGE: "another donor let the request wait, and this one is idle",
}


@dataclass(frozen=True, slots=True)
class Why:
    """Why a donor was asked.

    expected_first_token_s, expected_total_s: seconds, as they were expected of it; 0 when a rule
    that needs no estimate decided. n_compared: donors that could have been asked, itself among
    them. n_failed, n_full: those of them left out because they rest after failures, or said that
    they are busy. expected_wait_s: of the time to the first token, until it begins. is_measured:
    does this peer know its speed from its own requests, and not from the donor's word?
    """

    rule: Rule
    expected_first_token_s: float = 0.0
    expected_total_s: float = 0.0
    n_compared: int = 1
    n_failed: int = 0
    n_full: int = 0
    expected_wait_s: float = 0.0
    is_measured: bool = False

    @property
    def text(self) -> str:
        """The same in words, for people."""
        parts = [_SAYS[self.rule]]
        if self.expected_total_s:
            source = "by what was measured" if self.is_measured else "by its own word"
            parts.append(
                f"first token expected after {self.expected_first_token_s:.1f} s, {source}"
            )
        if self.n_compared > 1:
            parts.append(f"of {self.n_compared} donors")
        if self.n_failed:
            parts.append(f"{self.n_failed} of them resting after failures")
        if self.n_full:
            parts.append(f"{self.n_full} of them busy")
        return "; ".join(parts)
