"""Who can, may and is wanted to answer: properties over any set of candidates, and the words."""

from __future__ import annotations

import dataclasses
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.peer.exchange_lab import make_request
from tests.router.test_policy import ALICE, candidates
from tokenplace.errors import (
    InvalidRequest,
    NoDonorAsWished,
    TokenplaceError,
    UntrustedDonorTools,
)
from tokenplace.features import Feature
from tokenplace.generation import (
    ChatInput,
    ChatMessage,
    IdsInput,
    JsonObject,
    NamedTool,
    Tool,
    ToolCall,
    ToolChoice,
    Wishes,
)
from tokenplace.operations import CountRequest, EmbedRequest, ScoreRequest
from tokenplace.router.demand import Demand, Need, Sought, demand_of, screen, sought
from tokenplace.router.policy import Candidate, expected_first_token_s
from tokenplace.router.selector import Facts, Selector
from tokenplace.router.trust import NO_TRUST, ToolsFrom, Trust

DONORS = ["self", "alice", "bob", "carol", "dave", "erin", "nobody"]
CAROL = dataclasses.replace(
    ALICE, donor="carol", name="tiny", features=("chat", "tools", "grammar"), quantization="Q4_K_M"
)
DAVE = dataclasses.replace(CAROL, donor="dave", quantization="Q8_0")
OWN = dataclasses.replace(CAROL, donor="")
TOOLS = Demand((Need(Feature.TOOLS, "tools"),), has_tools=True)
HELLO = (ChatMessage("user", "hello"),)
LOOK_UP = Tool("look_up", "", "{}")

names = st.lists(st.sampled_from(DONORS), max_size=3, unique=True).map(tuple)
wishes = st.builds(
    Wishes,
    order=names,
    only=names,
    ignore=names,
    may_fall_back=st.booleans(),
    quantizations=st.lists(st.sampled_from(["q4_k_m", "Q8_0"]), max_size=1).map(tuple),
    max_latency_s=st.one_of(st.none(), st.floats(0.1, 60)),
)
demands = st.builds(
    Demand,
    needs=st.lists(st.sampled_from(Feature), max_size=2).map(
        lambda features: tuple(Need(feature, "tools") for feature in features)
    ),
    writes_text=st.booleans(),
    has_tools=st.booleans(),
    wishes=wishes,
)
trusts = st.builds(
    Trust,
    st.dictionaries(st.sampled_from(DONORS[1:]), st.just("")),
    st.sampled_from(ToolsFrom),
)
able_candidates = st.builds(
    lambda candidate, features, quantization: dataclasses.replace(
        candidate, features=tuple(features), quantization=quantization
    ),
    candidates,
    st.lists(st.sampled_from([*Feature, "later"]), max_size=4),
    st.sampled_from(["", "Q4_K_M", "q8_0"]),
)


def choose(
    known: list[Candidate],
    order: tuple[str, ...],
    tried: frozenset[str] = frozenset(),
    seed: int = 1,
) -> Candidate | None:
    """Who is asked by somebody who has asked nobody yet."""
    selector = Selector(Random(seed), lambda candidate, error: None)
    choice = selector.choose(known, Facts(order=order), tried, now=0)
    return None if choice is None else choice.candidate


@given(st.lists(able_candidates, min_size=1), demands, trusts, st.integers())
def test_nobody_is_asked_who_cannot_may_not_or_is_not_wanted(
    known: list[Candidate], demand: Demand, trust: Trust, seed: int
) -> None:
    wished = demand.wishes
    try:
        left = screen(known, demand, trust)
    except TokenplaceError:
        return
    chosen = choose(left, wished.order, seed=seed)
    assert chosen is not None
    assert demand.features <= set(chosen.features)
    assert not (demand.writes_text and "embeddings" in chosen.features)
    assert not wished.only or chosen.called in wished.only
    assert chosen.called not in wished.ignore
    assert wished.may_fall_back or not wished.order or chosen.called in wished.order
    wanted_types = {wish.lower() for wish in wished.quantizations}
    assert not wanted_types or chosen.quantization.lower() in wanted_types
    assert wished.max_latency_s is None or expected_first_token_s(chosen) <= wished.max_latency_s
    is_trusted = chosen.is_own or chosen.donor in trust.peers
    assert is_trusted or not demand.has_tools or trust.tools_from is ToolsFrom.ANY


@given(st.lists(able_candidates, min_size=1), demands, trusts)
def test_a_refusal_means_that_nobody_would_do(
    known: list[Candidate], demand: Demand, trust: Trust
) -> None:
    def passes(candidate: Candidate) -> bool:
        try:
            return bool(screen([candidate], demand, trust))
        except TokenplaceError:
            return False

    would_do = [candidate for candidate in known if passes(candidate)]
    if would_do:
        assert screen(known, demand, trust) == would_do
    else:
        with pytest.raises((InvalidRequest, NoDonorAsWished, UntrustedDonorTools)) as caught:
            screen(known, demand, trust)
        assert caught.value.detail
        assert caught.value.hint or caught.value.param


@given(st.lists(able_candidates, min_size=1), demands, trusts)
def test_whoever_would_do_is_looked_for(
    known: list[Candidate], demand: Demand, trust: Trust
) -> None:
    try:
        left = screen(known, demand, trust)
    except TokenplaceError:
        return
    looked_for = sought(demand, trust)
    for candidate in left:
        if not candidate.is_own:
            assert looked_for is not None
            assert looked_for.features <= set(candidate.features)
            assert not looked_for.peers or candidate.donor in looked_for.peers


@given(st.lists(candidates, min_size=1), names, st.frozensets(st.sampled_from(DONORS)))
def test_the_order_is_kept(
    known: list[Candidate], order: tuple[str, ...], tried: frozenset[str]
) -> None:
    chosen = choose(known, order, tried)
    left = [c for c in known if c.donor not in tried]
    ready = [c for c in left if c.is_accepting or c.is_own] or left
    first = next((donor for donor in order if donor in {c.called for c in ready}), None)
    if first is not None:
        assert chosen is not None
        assert chosen.called == first
        assert chosen.rank == min(c.rank for c in ready if c.called == first)


def test_the_order_goes_before_the_own_engine_which_goes_before_others() -> None:
    asked = []
    tried: set[str] = set()
    while chosen := choose([OWN, CAROL, DAVE], ("dave", "nobody"), frozenset(tried)):
        asked.append(chosen.called)
        tried.add(chosen.donor)
    assert asked == ["dave", "self", "carol"]


# ---------------------------------------------------------------- what a request asks


def chat_demand(**changes: object) -> Demand:
    return demand_of(make_request(input=ChatInput(HELLO, **changes)))  # type: ignore[arg-type]


def test_what_a_request_needs_a_model_to_do() -> None:
    assert demand_of(make_request()).features == frozenset()
    assert demand_of(make_request(input=IdsInput((1,)))).features == frozenset()
    assert chat_demand().features == {"chat"}
    assert demand_of(make_request(output=JsonObject())).features == {"grammar"}
    assert chat_demand(tools=(LOOK_UP,)).features == {"chat", "tools"}
    for forced in (ToolChoice.REQUIRED, NamedTool("look_up")):
        asked = chat_demand(tools=(LOOK_UP,), tool_choice=forced)
        assert asked.features == {"chat", "tools", "grammar"}
    assert demand_of(EmbedRequest("auto", ("x",))).features == {"embeddings"}
    asked_count = CountRequest("auto", ChatInput(HELLO), "2026-11-22")
    assert demand_of(asked_count).features == {"chat"}
    assert demand_of(
        ScoreRequest("auto", IdsInput((1,)), (1,), bytes(16), "2026-11-22")
    ).writes_text


def test_a_model_for_embeddings_writes_no_text_and_others_make_no_embeddings() -> None:
    vectors = dataclasses.replace(CAROL, name="vectors", features=("embeddings",))
    embed = demand_of(EmbedRequest("auto", ("x",)))
    assert screen([CAROL, vectors], embed, NO_TRUST) == [vectors]
    assert screen([CAROL, vectors], demand_of(make_request()), NO_TRUST) == [CAROL]
    with pytest.raises(InvalidRequest, match=r"vectors.* makes embeddings, no text"):
        screen([vectors], demand_of(make_request()), NO_TRUST)
    assert screen([], embed, NO_TRUST) == [], "that nobody is there is said by who has searched"


def test_only_an_answer_that_may_be_a_tool_call_needs_trust() -> None:
    assert chat_demand(tools=(LOOK_UP,)).has_tools
    assert not chat_demand().has_tools
    assert not chat_demand(tools=(LOOK_UP,), tool_choice=ToolChoice.NONE).has_tools
    past = ChatInput(
        (*HELLO, ChatMessage("assistant", "", (ToolCall("1", "look_up", "{}"),)),
         ChatMessage("tool", "found", tool_call_id="1"))
    )  # fmt: skip
    assert not demand_of(make_request(input=past)).has_tools


# ---------------------------------------------------------------- what an app is told


def test_a_refusal_says_which_wish_excluded_how_many() -> None:
    slow = dataclasses.replace(CAROL, donor="erin", queue=8)
    wished = Wishes(ignore=("alice", "dave"), quantizations=("Q4_K_M",), max_latency_s=10)
    dave_too = [dataclasses.replace(DAVE, artifact="b" * 64), DAVE]
    other = dataclasses.replace(DAVE, donor="bob")
    with pytest.raises(NoDonorAsWished) as caught:
        screen([*dave_too, slow, other], Demand(wishes=wished), NO_TRUST)
    assert caught.value.http_status == 503
    assert caught.value.code == "no_donor_for_model"
    assert caught.value.detail == (
        "Of 3 that could answer, `ignore` excludes 1, `quantizations` excludes 1, "
        "`max_latency` excludes 1."
    )


def test_a_refusal_of_tools_names_the_commands_that_mend_it() -> None:
    known = [dataclasses.replace(CAROL, donor=f"donor-{n}", queue=n) for n in (4, 2, 1, 0)]
    with pytest.raises(UntrustedDonorTools) as caught:
        screen(known, TOOLS, Trust({"friend": ""}, flags=" --home /somewhere"))
    assert caught.value.code == "untrusted_donor_tools"
    assert caught.value.detail == "Who could answer now: 4, none trusted."
    for command in (
        "`tokenplace peer trust donor-0 --home /somewhere`",
        "`tokenplace peer trust donor-1 --home /somewhere`",
        "`tokenplace peer trust --tools-from any --home /somewhere`",
    ):
        assert command in caught.value.hint
    assert "donor-4" not in caught.value.hint, "the best three"


def test_without_a_trusted_donor_nobody_is_looked_for() -> None:
    assert sought(TOOLS, NO_TRUST) is None
    assert sought(TOOLS, Trust({"friend": ""})) == Sought(TOOLS.features, frozenset({"friend"}))
    only = dataclasses.replace(TOOLS, wishes=Wishes(only=("carol", "self")))
    assert sought(only, Trust({"friend": ""})) is None
    assert sought(only, Trust(tools_from=ToolsFrom.ANY)) == Sought(
        TOOLS.features, frozenset({"carol"})
    )


def test_wishes_that_ask_for_nothing_change_nothing() -> None:
    known = [CAROL, DAVE, OWN]
    assert screen(known, Demand(wishes=Wishes(may_fall_back=False)), NO_TRUST) == known
