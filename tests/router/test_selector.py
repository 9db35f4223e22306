"""What the selector learns of answers, and whom it then asks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.peer.exchange_lab import make_request
from tests.router.selecting import (
    ARTIFACT,
    DONORS,
    FAULTS,
    FINISHED,
    World,
    accepted,
    candidate,
    measured,
    tokens,
)
from tokenplace import defaults
from tokenplace.errors import (
    DonorBusy,
    DonorInternalError,
    TokenplaceError,
)
from tokenplace.generation import (
    Accepted,
    Alive,
    ChatInput,
    ChatMessage,
    Finished,
    GenerateRequest,
    Phase,
    TextInput,
    Tokens,
    Tool,
)
from tokenplace.operations import CountRequest, EmbedRequest, ScoreRequest
from tokenplace.router.demand import demand_of
from tokenplace.router.memory import PATH_ERRORS, STATEMENT_ERRORS, Notes
from tokenplace.router.selector import FAILED_COST, Facts, Selector
from tokenplace.router.why import Rule

EMBED = EmbedRequest("minilm", ("one two", (2, 3)))
COUNT = CountRequest("tiny", ChatInput((ChatMessage("user", "one two"),)), "2026-03-01")
SCORE = ScoreRequest("tiny", TextInput("one"), (4, 5), bytes(16), "2026-03-01")


# ---------------------------------------------------------------- newcomers


def test_newcomers_get_a_fixed_share_of_the_requests_that_may_go_to_them() -> None:
    world = measured("alice", "bob")
    rules = Counter(world.choose().why.rule for _ in range(1000))
    assert 0.04 <= rules[Rule.NEWCOMER] / 1000 <= defaults.NEWCOMERS_SHARE
    rules = Counter(world.choose(is_first=False).why.rule for _ in range(200))
    rules += Counter(world.choose(Facts(has_chances=False)).why.rule for _ in range(200))
    assert not rules[Rule.NEWCOMER]


def test_after_a_quiet_time_no_burst_goes_to_newcomers() -> None:
    world = measured("alice")
    for _ in range(500):
        world.selector.choose([], Facts(), frozenset(), world.now)
    rules = [world.choose().why.rule for _ in range(19)]
    assert rules.count(Rule.NEWCOMER) <= defaults.MAX_EXPLORATIONS


def test_newcomers_that_fail_each_time_get_half_of_that_however_often_they_may_be_tried() -> None:
    world = measured("alice", "bob")
    for donor in ("carol", "dave"):
        world.fail(donor, DonorInternalError())
    world.now += defaults.BREAKER_MAX_REST_S
    asked = Counter[str]()
    for _ in range(1000):
        donor = world.choose().candidate.donor
        asked[donor] += 1
        if donor in ("carol", "dave"):
            world.fail(donor, DonorInternalError())
            world.now += 2 * defaults.BREAKER_MAX_REST_S
            for known in ("alice", "bob"):
                world.answer(known)
    assert 10 < asked["carol"] + asked["dave"] <= 1000 * defaults.NEWCOMERS_SHARE / 2


def test_what_a_failed_newcomer_costs_is_saved_up_first() -> None:
    world = measured("alice", "bob")
    world.donors = world.donors[:3]
    world.fail("carol", DonorInternalError())
    world.now += defaults.BREAKER_MAX_REST_S
    rules = [world.choose().why.rule for _ in range(60)]
    n_saved = round(FAILED_COST / defaults.NEWCOMERS_SHARE)
    assert abs(rules.index(Rule.NEWCOMER) + 1 - n_saved) <= 1  # by how 0.05 adds up


def test_who_has_answered_once_is_no_newcomer() -> None:
    world = measured("alice", "bob")
    world.answer("carol")
    newcomers = {
        c.candidate.donor for _ in range(500) if (c := world.choose()).why.rule is (Rule.NEWCOMER)
    }
    assert newcomers == {"dave"}


# ---------------------------------------------------------------- estimates


def test_a_liar_is_asked_less_than_its_share_even_if_it_is_no_worse() -> None:
    world = World(
        donors=[*map(candidate, DONORS), candidate("liar", decode_tps=2000.0, prefill_tps=1e5)]
    )
    for donor in (*DONORS, "liar"):
        for _ in range(10):
            world.answer(donor)
    asked = Counter(world.choose().candidate.donor for _ in range(1000))
    assert asked["liar"] < 100
    assert all(asked[donor] > 150 for donor in DONORS)


def test_own_requests_under_way_count_before_load_figures_show_them() -> None:
    world = measured()
    asked = Counter[str]()
    for _ in range(8):
        choice = world.choose(Facts(has_chances=False))
        asked[choice.candidate.donor] += 1
        world.ask(choice.candidate.donor)
    assert max(asked.values()) <= 4


def test_a_donor_that_works_on_several_at_once_has_so_many_seats() -> None:
    world = measured()
    running = [world.ask("alice") for _ in range(4)]
    assert world.memory.n_seats("alice") == 1
    for notes in running:
        notes.note(tokens(), world.now)
    assert world.memory.n_seats("alice") == 4
    world.ask("alice").note(accepted(position=1), world.now)
    assert world.memory.n_seats("alice") == 4
    for notes in running[1:]:
        notes.left(world.now)
    world.ask("alice").note(accepted(position=1), world.now)
    assert world.memory.n_seats("alice") == 1, "somebody else sits there now"


def test_where_figures_show_no_queue_there_is_a_place_beside_older_requests() -> None:
    world = measured()
    world.ask("alice").note(tokens(), world.now)
    world.now += 5
    assert world.memory.n_seats("alice") == 1
    asked = Counter(world.choose(Facts(has_chances=False)).candidate.donor for _ in range(400))
    assert asked["alice"] > 50, "it said since that a new request would begin at once"
    world.ask("alice")
    asked = Counter(world.choose(Facts(has_chances=False)).candidate.donor for _ in range(400))
    assert asked["alice"] < 20, "that one its figures do not show yet"


def test_as_many_as_a_donor_works_on_at_once_wait_for_none() -> None:
    world = World(donors=[candidate("alice")])
    running = [world.ask("alice") for _ in range(3)]
    for notes in running:
        notes.note(tokens(), world.now)
    for notes in running:
        notes.finished(world.now)
    assert world.memory.n_seats("alice") == 3
    for n_asked in range(4):
        assert (world.choose().why.expected_wait_s > 0) == (n_asked == 3)
        world.ask("alice")


def test_nobody_is_idle_for_a_hedge_who_has_a_request_that_its_figures_do_not_show() -> None:
    world = World(donors=[candidate("alice")])
    hedge = partial(world.selector.hedge, world.donors, Facts(), frozenset())
    assert hedge(world.now)
    world.ask("alice")
    assert hedge(world.now) is None


def test_a_requests_own_place_is_later_news_than_what_its_donor_tells_everybody() -> None:
    world = measured()
    world.donors = [candidate(donor, load_age_s=15.0) for donor in DONORS]

    def share_of_alice() -> float:
        chosen = [world.choose(Facts(has_chances=False)).candidate.donor for _ in range(400)]
        return chosen.count("alice") / len(chosen)

    assert share_of_alice() > 0.15
    notes = world.ask("alice")
    notes.note(accepted(), world.now)
    notes.note(Alive(Phase.QUEUED, 0.0, 6), world.now + 2)
    notes.left(world.now + 2)
    world.now += 3
    assert share_of_alice() < 0.05
    world.now += 20
    assert share_of_alice() > 0.15, "what it tells everybody is later now"


def test_of_several_requests_at_a_donor_the_latest_says_how_long_its_queue_is() -> None:
    world = World()
    earlier = world.ask("alice")
    world.now += 1
    later = world.ask("alice")
    later.note(accepted(position=5), world.now)
    earlier.note(accepted(position=1), world.now)
    queue = world.memory.queue("alice")
    assert queue is not None
    assert queue.n == 6, "that one is among them"


def test_of_the_own_engine_it_is_known_how_long_its_queue_is() -> None:
    world = World(donors=[candidate("", load_age_s=None)])
    world.ask("").note(accepted(position=9), world.now)
    assert world.choose().why.expected_wait_s == 0


def test_who_goes_on_with_an_answer_reads_it_first_and_does_not_look_slow() -> None:
    world = World()

    def first_token_s(donor: str) -> float:
        typical = world.memory.experience.typical(ARTIFACT)
        return world.memory.experience.first_token_s(donor, ARTIFACT, 0.5, 300, typical, world.now)

    world.answer("alice")
    known = world.donors[1]
    notes = world.selector.ask(known, Facts(), world.now, n_resumed=3000)
    notes.note(accepted(), world.now)
    world.now += 10
    notes.note(tokens(), world.now)
    assert first_token_s("bob") < 1.5 * first_token_s("alice")


@pytest.mark.parametrize("request_", [EMBED, SCORE, COUNT], ids=["embed", "score", "count"])
def test_answers_that_come_whole_are_measured_too_if_they_are_computed(
    request_: EmbedRequest | ScoreRequest | CountRequest,
) -> None:
    world = World()
    facts = world.selector.facts_of(request_, demand_of(request_))
    notes = world.ask("alice", facts)
    world.now += 3
    notes.finished(world.now)
    assert world.memory.experience.knows("alice", ARTIFACT) == (request_ is not COUNT)


def test_a_slow_app_does_not_make_its_donor_look_slow() -> None:
    world = measured()

    def expected() -> float:
        typical = world.memory.experience.typical(ARTIFACT)
        return world.memory.experience.token_s("alice", ARTIFACT, 0.05, typical, world.now)

    before = expected()
    notes = world.ask("alice")
    notes.note(tokens(), world.now)
    for _ in range(20):
        world.now += 10
        notes.note(tokens(), world.now, read_from=world.now)
    notes.note(FINISHED, world.now, read_from=world.now)
    assert expected() == pytest.approx(before, rel=0.1)


def test_who_lets_a_hedge_win_is_expected_later() -> None:
    world = measured()
    facts = Facts(300)
    before = world.choose(facts, tried=DONORS[1:]).why.expected_first_token_s
    notes = world.ask("alice", facts)
    world.now += 30
    notes.left(world.now)
    assert world.choose(facts, tried=DONORS[1:]).why.expected_first_token_s > before * 1.2


def test_short_answers_go_to_who_begins_first_long_ones_to_who_writes_fast() -> None:
    world = World(
        donors=[
            candidate("reads", prefill_tps=1000.0, decode_tps=10.0),
            candidate("writes", prefill_tps=50.0, decode_tps=100.0),
        ]
    )
    assert world.choose(Facts(400, 5)).candidate.donor == "reads"
    assert world.choose(Facts(400, 200)).candidate.donor == "writes"


# ---------------------------------------------------------------- affinity


def chat(*texts: str, max_tokens: int | None = None) -> GenerateRequest:
    messages = tuple(ChatMessage("user", text) for text in texts)
    return replace(make_request(), input=ChatInput(messages), max_tokens=max_tokens)


def test_a_conversation_goes_back_to_who_holds_it_unless_that_one_is_loaded() -> None:
    world = measured()
    world.donors = [candidate(donor, prefill_tps=200.0) for donor in DONORS]
    first, then = chat("one " * 2000), chat("one " * 2000, "two")
    world.answer("carol", world.selector.facts_of(first, demand_of(first)))
    facts = world.selector.facts_of(then, demand_of(then))
    for _ in range(10):
        choice = world.choose(replace(facts, has_chances=False))
        assert (choice.candidate.donor, choice.why.rule) == ("carol", Rule.AFFINITY)
    world.donors = [replace(c, queue=4 * (c.donor == "carol")) for c in world.donors]
    chosen = {world.choose(replace(facts, has_chances=False)).why.rule for _ in range(10)}
    assert chosen == {Rule.BETTER_OF_TWO}


def test_who_says_that_it_holds_nothing_is_believed() -> None:
    world = measured()
    request = chat("one " * 2000)
    facts = world.selector.facts_of(request, demand_of(request))
    world.answer("carol", facts)
    world.ask("carol", facts).note(accepted(n_cached=0), world.now)
    assert world.choose(replace(facts, has_chances=False)).why.rule is Rule.BETTER_OF_TWO


# ---------------------------------------------------------------- facts


def test_facts_of_requests() -> None:
    selector = World().selector

    def facts(request: GenerateRequest) -> Facts:
        return selector.facts_of(request, demand_of(request))

    assert facts(chat("four" * 100)).n_prompt == 100
    assert facts(chat("x", max_tokens=7)).n_answer == 7
    assert facts(chat("x", max_tokens=9999)).n_answer == facts(chat("x")).n_answer
    assert facts(chat("x")).has_chances
    with_tools = replace(
        chat("x"), input=ChatInput((ChatMessage("user", "x"),), (Tool("clock", "", "{}"),))
    )
    assert not facts(with_tools).has_chances
    embed = EmbedRequest("tiny", ("four" * 10, (1, 2, 3)))
    assert selector.facts_of(embed, demand_of(embed)).n_prompt == 13
    count = CountRequest("tiny", chat("four" * 10).input, "2026-11-22")
    assert selector.facts_of(count, demand_of(count)).n_prompt == 10


# ---------------------------------------------------------------- anything at all


class SelectorMachine(RuleBasedStateMachine):
    """Requests that are asked, and end in any order and way."""

    @initialize(seed=st.integers())
    def start(self, seed: int) -> None:
        self.selector = Selector(Random(seed), lambda candidate, error: None)
        self.now = 0.0
        self.asked: list[Notes] = []

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        donors=st.sets(st.sampled_from(DONORS)),
        tried=st.frozensets(st.sampled_from(DONORS)),
        is_first=st.booleans(),
    )
    def ask(self, donors: set[str], tried: frozenset[str], is_first: bool) -> None:
        facts = Facts()
        choice = self.selector.choose(
            [candidate(donor) for donor in sorted(donors)],
            facts,
            tried,
            self.now,
            is_first=is_first,
        )
        assert (choice is None) == (not donors - tried)
        if choice is not None:
            assert choice.candidate.donor in donors - tried
            self.asked.append(self.selector.ask(choice.candidate, facts, self.now))

    @precondition(lambda self: self.asked)
    @rule(
        what=st.sampled_from(
            [accepted(), accepted(position=2), tokens(), FINISHED, "left", "late"]
            + [error() for error in (*FAULTS, *PATH_ERRORS, *STATEMENT_ERRORS, DonorBusy)]
        ),
        data=st.data(),
    )
    def comes(self, what: object, data: st.DataObject) -> None:
        notes = data.draw(st.sampled_from(self.asked))
        match what:
            case TokenplaceError():
                notes.failed(what, self.now)
            case Accepted() | Tokens() | Finished():
                notes.note(what, self.now)
            case _:
                notes.left(self.now)
        if notes.is_over:
            self.asked.remove(notes)

    @invariant()
    def whoever_is_asked_is_counted_and_at_most_one_is_a_trial(self) -> None:
        for donor in DONORS:
            asked = [notes for notes in self.asked if notes.candidate.donor == donor]
            assert self.selector.memory.n_asked(donor) == len(asked)
            assert sum(notes.is_trial for notes in asked) <= 1
            assert 1 <= self.selector.memory.n_seats(donor) <= defaults.MAX_SEATS_SEEN
            assert self.selector.memory.standing(donor, self.now)[1] >= 0
        assert len(self.selector.memory) <= len(DONORS)


SelectorMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestSelector = SelectorMachine.TestCase


def test_memory_is_bounded_and_never_forgets_who_is_asked_now() -> None:
    world = World()
    running = world.ask("alice")
    for number in range(defaults.MAX_DONORS_MEASURED + 50):
        world.donors = [candidate(f"donor-{number}")]
        world.answer(f"donor-{number}")
    assert len(world.memory) <= defaults.MAX_DONORS_MEASURED
    assert world.memory.n_asked("alice") == 1
    running.left(world.now)
