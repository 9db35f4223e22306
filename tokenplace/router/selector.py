"""Whom the router asks next. Start at `Selector.choose`.

Pure: `now` (trio's clock) and the dice are arguments. Makes of each candidate a `Contender`, by
what `memory` knows of it, for `policy`, which decides.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from tokenplace import defaults
from tokenplace.errors import TokenplaceError
from tokenplace.generation import GenerateRequest
from tokenplace.operations import EmbedRequest, Request, ScoreRequest
from tokenplace.router import policy
from tokenplace.router.affinity import BYTES_PER_TOKEN, KEY_BYTES, Prefix, n_prompt_of
from tokenplace.router.demand import Demand
from tokenplace.router.experience import Typical, plain_first_token_s
from tokenplace.router.memory import Memory, Notes
from tokenplace.router.policy import Candidate, Choice, Contender, Standing
from tokenplace.router.why import Rule

# A queue's figures fade into what is usual now, the sooner the shorter it is: by the time that they
# are so old, a short one is another one. If all requesters took them for true, they would leave a
# donor at once and come back at once. Set by simulation (docs/design.md).
FADE: Final = 2.0


# Explorations that a newcomer costs which has failed: so those get half of the newcomers' share,
# however many they are and however many requests there are.
FAILED_COST: Final = 2.0
# Times that an advertised speed may be more than the measured one: a full batch, a slow line.
BOAST: Final = 3.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What a request is to whoever chooses a donor.

    n_prompt, n_answer: tokens, estimated. order: donors wished first. has_chances: may it be risked
    with somebody unproven? prefixes: the beginnings of its prompt. is_computed: does an answer take
    a donor as long as its model takes to read the prompt, or longer?
    """

    n_prompt: int = policy.EXPECTED_PROMPT_TOKENS
    n_answer: int = policy.EXPECTED_ANSWER_TOKENS
    order: tuple[str, ...] = ()
    has_chances: bool = True
    prefixes: tuple[Prefix, ...] = ()
    is_computed: bool = True


@dataclass(frozen=True, slots=True)
class _Queue:
    """Requests ahead of a new one, by the donor's word. age_s: infinite if there is none."""

    n: int
    age_s: float


class Selector:
    """Chooses donors by what is known of them."""

    def __init__(
        self, dice: Random, in_doubt: Callable[[Candidate, TokenplaceError], None]
    ) -> None:
        """in_doubt: see `Memory`."""
        self.memory = Memory(dice, secrets.token_bytes(KEY_BYTES), in_doubt)
        self._dice = dice
        # Requests that may go to somebody unproven: a fixed share of all, saved up for a few.
        self._explorations = 0.0

    def facts_of(self, request: Request, demand: Demand) -> Facts:
        """What is to be known of a request."""
        order = demand.wishes.order
        match request:
            case GenerateRequest():
                prefixes = self.memory.affinity.prefixes_of(request)
                n_answer = policy.EXPECTED_ANSWER_TOKENS
                if request.max_tokens is not None:
                    n_answer = min(request.max_tokens, n_answer)
                n_prompt = n_prompt_of(request.input)
                return Facts(n_prompt, n_answer, order, not demand.has_tools, prefixes)
            case EmbedRequest():
                return Facts(sum(map(_n_tokens, request.inputs)), 0, order)
            case ScoreRequest():
                return Facts(n_prompt_of(request.input) + len(request.ids), 0, order)
            case _:
                return Facts(n_prompt_of(request.input), 0, order, is_computed=False)

    def choose(
        self,
        candidates: Sequence[Candidate],
        facts: Facts,
        tried: frozenset[str],
        now: float,
        *,
        is_first: bool = True,
    ) -> Choice | None:
        """Whom to ask of those that were not tried yet; None only when nobody is left. is_first:
        was nobody asked yet, so that there are chances left if this one fails?
        """
        has_chances = facts.has_chances and is_first
        if has_chances:
            saved = self._explorations + defaults.NEWCOMERS_SHARE
            self._explorations = min(saved, defaults.MAX_EXPLORATIONS)
        choice = policy.choose(
            self._contenders(candidates, facts, tried, now),
            self._dice,
            order=facts.order,
            may_explore=has_chances and self._explorations >= 1,
            may_retry=has_chances and self._explorations >= FAILED_COST,
            may_try=has_chances,
        )
        if choice is not None and choice.why.rule is Rule.NEWCOMER:
            standing, _ = self.memory.standing(choice.candidate.donor, now)
            self._explorations -= FAILED_COST if standing is Standing.DUE else 1
        return choice

    def hedge(
        self, candidates: Sequence[Candidate], facts: Facts, tried: frozenset[str], now: float
    ) -> Choice | None:
        """Whom to ask beside somebody who lets the request wait; None unless one is idle."""
        return policy.hedge(self._contenders(candidates, facts, tried, now))

    def is_own_outage(self, now: float) -> bool:
        """Is this machine's own network away, as far as can be told?"""
        return self.memory.is_own_outage(now)

    def ask(
        self,
        candidate: Candidate,
        facts: Facts,
        now: float,
        *,
        wait_s: float = 0.0,
        n_resumed: int = 0,
    ) -> Notes:
        """It is asked from now on; tell the `Notes` what comes of it. wait_s: as in `Why`.
        n_resumed: tokens of the answer that it has to read behind the prompt.
        """
        return self.memory.ask(
            candidate,
            now,
            n_prompt=facts.n_prompt + n_resumed,
            prefixes=facts.prefixes,
            wait_s=wait_s,
            is_computed=facts.is_computed,
        )

    def _contenders(
        self, candidates: Sequence[Candidate], facts: Facts, tried: frozenset[str], now: float
    ) -> list[Contender]:
        left = [c for c in candidates if c.donor not in tried]
        typical = {a: self.memory.experience.typical(a) for a in {c.artifact for c in left}}
        queues = [self._queue(c, now) for c in left]
        told = [queue.n for queue in queues if math.isfinite(queue.age_s)]
        mean_queue = sum(told) / len(told) if told else 0.0
        return [
            self._contender(c, facts, typical[c.artifact], queue, mean_queue, now)
            for c, queue in zip(left, queues, strict=True)
        ]

    def _contender(
        self,
        candidate: Candidate,
        facts: Facts,
        typical: Typical,
        queue: _Queue,
        mean_queue: float,
        now: float,
    ) -> Contender:
        memory, experience = self.memory, self.memory.experience
        donor, artifact = candidate.donor, candidate.artifact
        token_s = experience.token_s(donor, artifact, candidate.promised_token_s, typical, now)
        rtt_s = candidate.rtt_s or 0.0
        promised_s = rtt_s + facts.n_prompt * candidate.promised_prefill_s
        first_s = experience.first_token_s(
            donor, artifact, promised_s, facts.n_prompt, typical, now
        )
        n_held = memory.affinity.n_held(facts.prefixes, donor, artifact, now)
        # What a donor holds saves reading it, not the way there and back.
        n_left = max(facts.n_prompt - n_held, 0)
        per_unit_s = first_s / plain_first_token_s(facts.n_prompt)
        saved_s = first_s - per_unit_s * plain_first_token_s(n_left)
        answer_s = policy.EXPECTED_ANSWER_TOKENS * token_s
        wait_s = self._ahead(candidate, queue, mean_queue, answer_s, now) * answer_s
        standing, ready_in_s = memory.standing(donor, now)
        is_newcomer = not candidate.is_own and not experience.knows(donor, artifact)
        # Each failure costs the way to another donor, and what it had computed. Whoever does not
        # keep one promise may not keep the others, of its queue say, which nobody can measure.
        factor = 1 / (1 - memory.faults(donor))
        if not is_newcomer and token_s * candidate.decode_tps > BOAST:
            factor *= policy.NEAR_EQUAL_FACTOR
        first_token_s = (wait_s + first_s - saved_s) * factor
        return Contender(
            candidate,
            first_token_s=first_token_s,
            total_s=first_token_s + facts.n_answer * token_s * factor,
            wait_s=wait_s,
            saved_s=saved_s,
            is_free=not queue.n and not self._own_ahead(donor, queue, now),
            standing=standing,
            ready_in_s=ready_in_s,
            is_newcomer=is_newcomer,
        )

    def _queue(self, candidate: Candidate, now: float) -> _Queue:
        """By its latest word: in what it tells everybody, or of this peer's own requests there."""
        age_s = math.inf if candidate.load_age_s is None else candidate.load_age_s
        heard = self.memory.queue(candidate.donor)
        if heard is not None and now - heard.at < age_s and not candidate.is_own:
            return _Queue(heard.n, now - heard.at)
        return _Queue(candidate.queue, age_s)

    def _ahead(
        self, candidate: Candidate, queue: _Queue, mean_queue: float, answer_s: float, now: float
    ) -> float:
        """Requests that have to end before this one begins, as far as can be told."""
        memory, donor = self.memory, candidate.donor
        n_seats = memory.n_seats(donor)
        if candidate.is_own:
            return queue.n / n_seats
        turnover_s = (queue.n + 1) * answer_s / n_seats
        faith = turnover_s / (turnover_s + FADE * queue.age_s)
        ahead = mean_queue + (queue.n - mean_queue) * faith
        if queue.n:
            ahead += memory.n_asked(donor, since=now - queue.age_s)
        return max(ahead, self._own_ahead(donor, queue, now)) / n_seats

    def _own_ahead(self, donor: str, queue: _Queue, now: float) -> int:
        """Requests of this peer itself that have to end before. A donor's figures show none that is
        younger; where they show no queue there is a place beside the older ones, however many were
        seen at once.
        """
        n_unseen = self.memory.n_asked(donor, since=now - queue.age_s)
        n_seen = self.memory.n_asked(donor) - n_unseen
        n_free = max(self.memory.n_seats(donor) - n_seen, 0 if queue.n else 1)
        return max(n_unseen + 1 - n_free, 0)


def _n_tokens(text: str | tuple[int, ...]) -> int:
    return len(text.encode()) // BYTES_PER_TOKEN if isinstance(text, str) else len(text)
