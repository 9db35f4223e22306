"""Which donor to ask next. Pure: no I/O, no clock; the dice are an argument. Start at `choose`.

Source: docs/protocol.md, section 11. Advertised figures are a donor's own word, so they are capped
and only rank: they never shut anybody out, unless a request wishes so (`demand`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final

from tokenplace.models.syntax import PIN_HEX_DIGITS

if TYPE_CHECKING:  # adverts import libp2p; this module does not need it to run
    from tokenplace.models.names import NamedModel
    from tokenplace.peer.adverts import OfferedModel

# Guesses that only decide the order until a donor has been measured: a laptop's small model.
UNKNOWN_PREFILL_TPS: Final = 100.0
UNKNOWN_DECODE_TPS: Final = 10.0
# A donor may not jump the queue by claiming more than fast accelerators reach with one sequence.
MAX_CREDIBLE_PREFILL_TPS: Final = 20_000.0
MAX_CREDIBLE_DECODE_TPS: Final = 300.0
EXPECTED_ANSWER_TOKENS: Final = 200
EXPECTED_PROMPT_TOKENS: Final = 300
OWN_ENGINE: Final = "self"  # how people, and the wishes of a request, call this peer's own
NEAR_EQUAL_FACTOR: Final = 1.3
GOOD_FIRST_TOKEN_S: Final = 1.0
GOOD_DECODE_TPS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to answer: one donor with one artifact of an acceptable model.

    donor: peer id; empty for this peer's own engine. rank: place of the model in the user's order,
    0 first. queue: requests ahead. prefill_tps, decode_tps: tokens/s, 0 if unknown. rtt_s: None if
    unknown. name: what the model is called here. features, quantization: the donor's word.
    """

    donor: str
    artifact: str
    template: str
    rank: int
    queue: int
    prefill_tps: float
    decode_tps: float
    rtt_s: float | None
    is_accepting: bool
    name: str = ""
    features: tuple[str, ...] = ()
    quantization: str = ""

    @property
    def is_own(self) -> bool:
        """Is it this peer's own engine?"""
        return not self.donor

    @property
    def called(self) -> str:
        """The donor as people call it."""
        return self.donor or OWN_ENGINE

    @property
    def served(self) -> str:
        """The model, as `Accepted.served` has it: name and pin."""
        return f"{self.name}@sha256:{self.artifact[:PIN_HEX_DIGITS]}"


def expected_first_token_s(candidate: Candidate) -> float:
    """Seconds until the first token, by what the donor says of itself."""
    prefill = min(candidate.prefill_tps or UNKNOWN_PREFILL_TPS, MAX_CREDIBLE_PREFILL_TPS)
    ahead_s = candidate.queue * _answer_s(candidate)
    return ahead_s + EXPECTED_PROMPT_TOKENS / prefill + (candidate.rtt_s or 0.0)


def expected_total_s(candidate: Candidate) -> float:
    """Seconds to the end of an answer of `EXPECTED_ANSWER_TOKENS`: the score, lower is better."""
    return expected_first_token_s(candidate) + _answer_s(candidate)


def choose(
    candidates: Sequence[Candidate],
    tried: frozenset[str],
    dice: Random,
    order: Sequence[str] = (),
) -> Candidate | None:
    """Pick whom to ask next among the donors not tried yet; None when nobody is left.

    Those of `order`, which the request wishes, go first as they stand there; then the own engine,
    then the best model of the user's order. Among donors that are about equally good two are drawn
    at random and the better wins: always taking the best would herd all requesters onto one donor,
    and reward the boldest liar.
    """
    left = [c for c in candidates if c.donor not in tried]
    # A donor that says it accepts nothing is asked only when nobody else is left.
    left = [c for c in left if c.is_accepting or c.is_own] or left
    for donor in (*order, OWN_ENGINE):
        if named := [c for c in left if c.called == donor]:
            return min(named, key=lambda c: (c.rank, c.artifact))
    if not left:
        return None
    rank = min(c.rank for c in left)
    left = [c for c in left if c.rank == rank]
    best_s = min(expected_total_s(c) for c in left)
    equals = sorted(
        (c for c in left if _is_good(c) or expected_total_s(c) <= NEAR_EQUAL_FACTOR * best_s),
        key=lambda c: (c.donor, c.artifact),
    )
    drawn = dice.sample(equals, min(2, len(equals)))
    return min(drawn, key=lambda c: (expected_total_s(c), c.donor))


def rank_of(offered: OfferedModel, wanted: Sequence[NamedModel]) -> int | None:
    """Place of `offered` among what is wanted, 0 first; None if it is none of it.

    The artifact decides, by prefix where the user pinned one; a template that the tables pin must
    match.
    """
    for rank, model in enumerate(wanted):
        if model.fits(offered.artifact, offered.template):
            return rank
    return None


def _answer_s(candidate: Candidate) -> float:
    decode = min(candidate.decode_tps or UNKNOWN_DECODE_TPS, MAX_CREDIBLE_DECODE_TPS)
    return EXPECTED_ANSWER_TOKENS / decode


def _is_good(candidate: Candidate) -> bool:
    return (
        expected_first_token_s(candidate) <= GOOD_FIRST_TOKEN_S
        and candidate.decode_tps >= GOOD_DECODE_TPS
    )
