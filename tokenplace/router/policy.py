"""Which donor to ask next. Pure: no I/O, no clock; the dice are an argument. Start at `choose`.

Source: docs/protocol.md, section 11. `selector` knows what was learned of each donor and hands it
over as a `Contender`. Figures only rank: they never shut anybody out, unless a request wishes so
(`demand`), and while anybody is left somebody is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from random import Random
from typing import TYPE_CHECKING, Final

from tokenplace.models.syntax import PIN_HEX_DIGITS
from tokenplace.router.why import Rule, Why

if TYPE_CHECKING:  # adverts import libp2p; this module does not need it to run
    from tokenplace.models.names import NamedModel
    from tokenplace.peer.adverts import OfferedModel

# Guesses that only decide the order until a donor has been measured: a laptop's small model.
UNKNOWN_PREFILL_TPS: Final = 100.0
UNKNOWN_DECODE_TPS: Final = 10.0
# A donor may not jump the queue by claiming more than fast accelerators reach with one sequence.
MAX_CREDIBLE_PREFILL_TPS: Final = 20_000.0
MAX_CREDIBLE_DECODE_TPS: Final = 300.0
_MIN_CREDIBLE_TPS: Final = 0.01  # nobody donates that; without it a time could be infinite
EXPECTED_ANSWER_TOKENS: Final = 200
EXPECTED_PROMPT_TOKENS: Final = 300  # where nothing is known of the prompt
OWN_ENGINE: Final = "self"  # how people, and the wishes of a request, call this peer's own
NEAR_EQUAL_FACTOR: Final = 1.3  # so much later with the whole answer hardly shows
# How much more often the better is drawn: twice as good, 16 times. Of the two drawn, how much more
# often it is taken: 256 times; where there are queues, 4 times. Set by simulation (docs/design.md).
DRAW_SHARPNESS: Final = 4.0
IDLE_SHARPNESS: Final = 8.0
QUEUE_SHARPNESS: Final = 2.0
GOOD_FIRST_TOKEN_S: Final = 1.0
GOOD_DECODE_TPS: Final = 20.0
# What the own engine's queue may cost before others are asked: they see the prompt.
OWN_FACTOR: Final = 2.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to answer: one donor with one artifact of an acceptable model.

    donor: peer id; empty for this peer's own engine. rank: place of the model in the user's order,
    0 first. queue: requests ahead. prefill_tps, decode_tps: tokens/s, 0 if unknown. rtt_s: None if
    unknown. name: what the model is called here. features, quantization: the donor's word. group:
    the network it is in, which somebody with many identities has to pay for; empty if unknown.
    load_age_s: how old queue and speeds are; None if they are unknown. n_ctx: tokens of its
    context; 0 if unknown.
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
    group: str = ""
    load_age_s: float | None = None
    n_ctx: int = 0

    @property
    def is_own(self) -> bool:
        """Is it this peer's own engine?"""
        return not self.donor

    @property
    def called(self) -> str:
        """The donor as people call it."""
        return self.donor or OWN_ENGINE

    def has_room(self, n_tokens: int) -> bool:
        """May its context hold more than so many tokens?"""
        return not self.n_ctx or self.n_ctx > n_tokens

    @property
    def served(self) -> str:
        """The model, as `Accepted.served` has it: name and pin."""
        return f"{self.name}@sha256:{self.artifact[:PIN_HEX_DIGITS]}"

    @property
    def promised_prefill_s(self) -> float:
        """Seconds for each token of a prompt, by the donor's word, as far as it is believed."""
        return 1 / _believed(self.prefill_tps or UNKNOWN_PREFILL_TPS, MAX_CREDIBLE_PREFILL_TPS)

    @property
    def promised_token_s(self) -> float:
        """Seconds for each token of an answer, by the donor's word, as far as it is believed."""
        return 1 / _believed(self.decode_tps or UNKNOWN_DECODE_TPS, MAX_CREDIBLE_DECODE_TPS)


class Standing(IntEnum):
    """May a donor be asked now? The lower, the sooner.

    READY: yes. SUSPECT: its path broke a moment ago, maybe by nobody's fault. DUE: it has rested,
    and one request may try it. COOLING: it was full. RESTING: it answered badly.
    """

    READY = 0
    SUSPECT = 1
    DUE = 2
    COOLING = 3
    RESTING = 4


@dataclass(frozen=True, slots=True)
class Contender:
    """A candidate, and what is expected of it.

    first_token_s, total_s: seconds until the first token and to the end of this answer, all in all.
    wait_s: of them, until it begins. saved_s: what they would be longer if the donor did not hold a
    beginning of the prompt. is_free: does nobody wait there, as far as is known? ready_in_s:
    until it is ready again by itself. is_newcomer: nothing of it was ever measured here.
    """

    candidate: Candidate
    first_token_s: float
    total_s: float
    wait_s: float = 0.0
    saved_s: float = 0.0
    is_free: bool = True
    standing: Standing = Standing.READY
    ready_in_s: float = 0.0
    is_newcomer: bool = False

    @property
    def is_good(self) -> bool:
        """Would nobody notice if another was better?"""
        return (
            self.first_token_s <= GOOD_FIRST_TOKEN_S
            and (self.total_s - self.first_token_s) * GOOD_DECODE_TPS <= EXPECTED_ANSWER_TOKENS
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """Whom to ask, and why."""

    candidate: Candidate
    why: Why


# ---------------------------------------------------------------- by a donor's own word alone


def expected_first_token_s(candidate: Candidate) -> float:
    """Seconds until the first token, by what the donor says of itself."""
    ahead_s = candidate.queue * EXPECTED_ANSWER_TOKENS * candidate.promised_token_s
    prefill_s = EXPECTED_PROMPT_TOKENS * candidate.promised_prefill_s
    return ahead_s + prefill_s + (candidate.rtt_s or 0.0)


def expected_total_s(candidate: Candidate) -> float:
    """Seconds to the end of an answer of `EXPECTED_ANSWER_TOKENS`."""
    answer_s = EXPECTED_ANSWER_TOKENS * candidate.promised_token_s
    return expected_first_token_s(candidate) + answer_s


# ---------------------------------------------------------------- the choice


def choose(
    contenders: Sequence[Contender],
    dice: Random,
    *,
    order: Sequence[str] = (),
    may_explore: bool = False,
    may_retry: bool = False,
    may_try: bool = False,
) -> Choice | None:
    """Pick whom to ask; None only if nobody is left. may_explore, may_retry, may_try: whether this
    request may go to a newcomer, to one that has failed and rested, or to somebody measured that
    has, though others are ready.

    Those of `order`, which the request wishes, go first as they stand there; then the own engine,
    unless its queue is long; then the best model of the user's order. Of those that offer it two
    are drawn at random, the better ones more often, and the better of the two is asked: always
    taking the best would herd all requesters onto one donor, and reward the boldest liar.
    """
    # A donor that says it accepts nothing is asked only when nobody else is left.
    left = [c for c in contenders if c.candidate.is_accepting or c.candidate.is_own]
    left = left or list(contenders)
    if not left:
        return None
    standing = min(c.standing for c in left)
    ready = [c for c in left if c.standing <= max(standing, Standing.SUSPECT)]

    def chosen(rule: Rule, winner: Contender) -> Choice:
        return _choice(rule, winner, left)

    for donor in order:
        if named := [c for c in ready if c.candidate.called == donor]:
            return chosen(Rule.WISHED, min(named, key=_by_rank))
    if own := [c for c in ready if c.candidate.is_own]:
        best = min(own, key=_by_rank)
        if _may_be_first(best, ready):
            return chosen(Rule.OWN, best)
    if standing > Standing.SUSPECT:
        return chosen(*_of_those_that_rest(left))
    ready = _best_rank(ready)
    rank = ready[0].candidate.rank
    due = [c for c in left if c.standing is Standing.DUE and c.candidate.rank <= rank]
    if may_try and (known := [c for c in due if not c.is_newcomer]):
        return chosen(Rule.TRIAL, min(known, key=_by_total))
    calm = [c for c in ready if c.standing is Standing.READY] or ready
    # Also those that have failed already, and were never measured: each gets no trials of its own.
    newcomers = [c for c in (*calm, *(due if may_retry else ())) if c.is_newcomer]
    if may_explore and newcomers and not all(c.is_newcomer for c in calm):
        return chosen(Rule.NEWCOMER, dice.choice(_one_of_each_group(newcomers, dice)))
    return chosen(*_of_those_ready(calm, dice))


def hedge(contenders: Sequence[Contender]) -> Choice | None:
    """Whom to ask beside somebody who lets a request wait: the best of those that are ready and
    idle, measured ones first; None if there is none.
    """
    idle = [
        c
        for c in contenders
        if c.standing is Standing.READY and c.candidate.is_accepting and c.is_free
    ]
    idle = [c for c in idle if not c.is_newcomer] or idle
    if not idle:
        return None
    return _choice(Rule.HEDGE, min(_best_rank(idle), key=_by_total), idle)


def rank_of(offered: OfferedModel, wanted: Sequence[NamedModel]) -> int | None:
    """Place of `offered` among what is wanted, 0 first; None if it is none of it.

    The artifact decides, by prefix where the user pinned one; a template that the tables pin must
    match.
    """
    for rank, model in enumerate(wanted):
        if model.fits(offered.artifact, offered.template):
            return rank
    return None


def _believed(tps: float, most: float) -> float:
    return max(min(tps, most), _MIN_CREDIBLE_TPS)


def _choice(rule: Rule, winner: Contender, compared: Sequence[Contender]) -> Choice:
    why = Why(
        rule,
        expected_first_token_s=winner.first_token_s,
        expected_total_s=winner.total_s,
        n_compared=len(compared),
        n_failed=sum(c.standing in (Standing.DUE, Standing.RESTING) for c in compared),
        n_full=sum(c.standing is Standing.COOLING for c in compared),
        expected_wait_s=winner.wait_s,
        is_measured=not winner.is_newcomer,
    )
    return Choice(winner.candidate, why)


def _may_be_first(own: Contender, ready: Sequence[Contender]) -> bool:
    """Does nobody who is measured begin so much sooner that the own engine's queue is not worth
    it?"""
    others = [c for c in ready if not c.candidate.is_own and not c.is_newcomer]
    if own.is_free or not others:
        return True
    return own.first_token_s <= OWN_FACTOR * min(c.first_token_s for c in others)


def _of_those_that_rest(left: Sequence[Contender]) -> tuple[Rule, Contender]:
    """Nobody is ready: somebody whose rest is over, else whose rest is over first."""
    due = [c for c in left if c.standing is Standing.DUE]
    if due:
        return Rule.TRIAL, min(_best_rank(due), key=_by_total)
    return Rule.LEAST_BAD, min(left, key=lambda c: (c.ready_in_s, _by_total(c)))


def _of_those_ready(ready: Sequence[Contender], dice: Random) -> tuple[Rule, Contender]:
    """ready: all with one rank."""
    newcomers = [c for c in ready if c.is_newcomer]
    pool = [c for c in ready if not c.is_newcomer]
    # Whoever would wait everywhere else loses nothing by asking somebody new, also with a queue:
    # else all who know the same few donors would fill those, and leave the others idle.
    if not any(c.is_free for c in pool):
        pool += _one_of_each_group(newcomers, dice)
    if len(pool) == 1:
        return _rule_of_one(pool[0], ready), pool[0]
    if holder := _holder(pool):
        return Rule.AFFINITY, holder
    return Rule.BETTER_OF_TWO, _better_of(*_two_of(pool, dice), dice)


def _rule_of_one(winner: Contender, ready: Sequence[Contender]) -> Rule:
    """Why nobody was compared with it."""
    if len(ready) == 1:
        return Rule.ONLY_ONE
    return Rule.DRAWN if winner.is_newcomer else Rule.ONLY_MEASURED


def _one_of_each_group(newcomers: Sequence[Contender], dice: Random) -> list[Contender]:
    """One of each network, so that a thousand identities of one hoster count as one."""
    groups: dict[str, list[Contender]] = {}
    for contender in sorted(newcomers, key=lambda c: (c.candidate.donor, c.candidate.artifact)):
        groups.setdefault(contender.candidate.group or contender.candidate.donor, []).append(
            contender
        )
    return [dice.choice(group) for group in groups.values()]


def _holder(pool: Sequence[Contender]) -> Contender | None:
    """Who holds a beginning of the prompt, if nobody else would be sooner with the first token, nor
    clearly with the whole."""
    holders = [c for c in pool if c.saved_s]
    if not holders:
        return None
    best = min(holders, key=lambda c: (c.first_token_s, _by_total(c)))
    is_soonest = best.first_token_s <= min(c.first_token_s for c in pool)
    is_near = best.total_s <= NEAR_EQUAL_FACTOR * min(c.total_s for c in pool)
    return best if is_soonest and is_near else None


def _two_of(pool: Sequence[Contender], dice: Random) -> tuple[Contender, Contender]:
    """Two different ones, each drawn the more often the better it is. Those that are good anyway
    count as equal to the best.
    """
    best_s = min(c.total_s for c in pool)
    left = sorted(pool, key=_by_total)
    drawn = []
    for _ in range(2):
        weights = [1.0 if c.is_good else _weight(best_s, c.total_s) for c in left]
        (index,) = dice.choices(range(len(left)), weights)
        drawn.append(left.pop(index))
    return drawn[0], drawn[1]


def _weight(best_s: float, total_s: float) -> float:
    """How often it is drawn, as a share of the best; never nothing, for somebody has to be."""
    return max((best_s / total_s) ** DRAW_SHARPNESS, 1e-9) if total_s else 1.0


def _better_of(one: Contender, other: Contender, dice: Random) -> Contender:
    """The better one, more or less. Less where it is a matter of queues, of which the figures are
    some seconds old: all requesters together would fill the shorter one at once, then the other.
    """
    better, worse = sorted((one, other), key=_by_total)
    is_queued = bool(better.wait_s or worse.wait_s)
    sharpness = QUEUE_SHARPNESS if is_queued else IDLE_SHARPNESS
    share = better.total_s / worse.total_s if worse.total_s else 1.0
    odds = share**sharpness  # of the worse one
    return worse if dice.random() < odds / (1 + odds) else better


def _best_rank(contenders: Sequence[Contender]) -> list[Contender]:
    rank = min(c.candidate.rank for c in contenders)
    return [c for c in contenders if c.candidate.rank == rank]


def _by_rank(contender: Contender) -> tuple[int, str]:
    return contender.candidate.rank, contender.candidate.artifact


def _by_total(contender: Contender) -> tuple[float, str, str]:
    candidate = contender.candidate
    return contender.total_s, candidate.donor, candidate.artifact
