"""What an answer may hold: tokens of each choice, log-probabilities, the end. For both roles."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.peer.exchanges import (
    ACCEPTED,
    ALIVE,
    ERROR,
    FINISHED,
    REQUEUED,
    ROLES,
    after,
    asked,
    finished,
    tokens,
)
from tokenplace import defaults
from tokenplace.errors import PromptMismatch, RemoteProtocolError
from tokenplace.generation import (
    Accepted,
    ChatInput,
    ChatMessage,
    EogStop,
    Finished,
    GrammarStop,
    JsonObject,
    JsonSchema,
    LengthStop,
    Logprob,
    Resume,
    Stop,
    StringStop,
    Tokens,
    Tool,
    ToolChoice,
    TopToken,
)
from tokenplace.peer.exchange import DONOR, Exchange, Input, State, Table
from tokenplace.peer.frames import Frame


@ROLES
def test_tokens_of_a_choice_are_contiguous(table: Table) -> None:
    exchange = asked(table)
    for frame in (ACCEPTED, tokens(0, 2), ALIVE, tokens(2), REQUEUED, tokens(3, 3)):
        exchange.take(frame, 0.0)
    for index in (0, 5, 7):
        with pytest.raises(RemoteProtocolError):
            exchange.take(tokens(index), 0.0)
    exchange.take(tokens(6), 0.0)


def test_only_the_choice_asked_for() -> None:
    with pytest.raises(RemoteProtocolError):
        after(ACCEPTED, tokens(0, choice=1))
    for choices in ((), (0, 0), (1,), (0, 1)):
        with pytest.raises(RemoteProtocolError):
            after(ACCEPTED, finished(*choices))


@pytest.mark.parametrize(
    ("n_tokens", "stop"),
    [(9, LengthStop()), (10, StringStop("halt")), (10, StringStop(""))],
    ids=["too early", "another string", "no string"],
)
def test_an_answer_that_was_cut_does_not_look_whole(n_tokens: int, stop: Stop) -> None:
    with pytest.raises(RemoteProtocolError):
        after(
            ACCEPTED,
            tokens(0, n_tokens),
            finished(0, stop=stop, n_tokens=n_tokens),
            stop=("end",),
        )


def test_whoever_counts_other_tokens_than_it_delivered_has_lost_some() -> None:
    for n_tokens in (0, 9, 11):
        with pytest.raises(RemoteProtocolError):
            after(ACCEPTED, tokens(0, 4), tokens(4, 6), finished(0, n_tokens=n_tokens))


@pytest.mark.parametrize("stop", [LengthStop(), StringStop("end"), EogStop(2)])
def test_an_answer_ends_as_it_may(stop: Stop) -> None:
    whole = (tokens(0, 4), tokens(4, 6), finished(0, stop=stop, n_tokens=10))
    assert after(ACCEPTED, *whole, stop=("end",)).state is State.ENDING


@ROLES
def test_several_choices_come_side_by_side(table: Table) -> None:
    exchange = asked(table, n=3)
    for frame in (
        *(ACCEPTED, tokens(0, choice=2), tokens(0, 2), tokens(1, choice=2), tokens(2)),
        *(ALIVE, tokens(2, 8, choice=2), REQUEUED, tokens(3)),
    ):
        exchange.take(frame, 0.0)
    for wrong in (
        *(tokens(0, choice=3), tokens(1, choice=1), tokens(2, choice=0), tokens(5, choice=0)),
        *(finished(0, 2), finished(0, 1, 2, 2), finished(0, 1, 3)),
    ):
        with pytest.raises(RemoteProtocolError):
            exchange.take(wrong, 0.0)
    exchange.take(finished(2, 0, 1, n_tokens=14), 0.0)
    assert exchange.state is State.ENDING


RESUMED = {
    "n": 3,
    "resume": (Resume(2, (7, 7)), Resume(0, ())),
    "prompt_digest": ACCEPTED.prompt_digest,
}


@ROLES
def test_a_resumed_choice_goes_on_where_it_was(table: Table) -> None:
    exchange = asked(table, **RESUMED)  # type: ignore[arg-type]
    for frame in (ACCEPTED, tokens(2, 4, choice=2), tokens(0), tokens(6, 4, choice=2)):
        exchange.take(frame, 0.0)
    for wrong in (
        *(tokens(0, choice=1), tokens(0, choice=2)),
        *(finished(0, 1, 2), finished(2)),
    ):
        with pytest.raises(RemoteProtocolError):
            exchange.take(wrong, 0.0)
    exchange.take(finished(0, 2, n_tokens=9), 0.0)


@ROLES
def test_only_the_same_prompt_is_resumed(table: Table) -> None:
    exchange = asked(table, **RESUMED)  # type: ignore[arg-type]
    with pytest.raises(PromptMismatch):
        exchange.take(replace(ACCEPTED, prompt_digest=b"d" * 32), 0.0)
    assert exchange.state is State.ASKED
    # Without a resume there is nothing to compare it with.
    asked(table, prompt_digest=b"e" * 32).take(ACCEPTED, 0.0)


def logprob(n_top: int, value: float = -0.5) -> Logprob:
    return Logprob(value, tuple(TopToken(7, b"x", value) for _ in range(n_top)))


@ROLES
def test_log_probabilities_are_those_asked_for(table: Table) -> None:
    for n_top in (0, 2):
        exchange = asked(table, top_logprobs=n_top)
        exchange.take(ACCEPTED, 0.0)
        exchange.take(tokens(0, 2, logprobs=(logprob(n_top), logprob(0, 0.0))), 0.0)
        for wrong in (
            (),
            (logprob(n_top),),
            (logprob(n_top),) * 3,
            (logprob(0), logprob(n_top + 1)),
            *((logprob(0), logprob(n_top, value)) for value in (0.1, nan, inf, -inf, -1e39)),
        ):
            with pytest.raises(RemoteProtocolError):
                exchange.take(tokens(2, 2, logprobs=wrong), 0.0)
    exchange = asked(table)
    exchange.take(ACCEPTED, 0.0)
    with pytest.raises(RemoteProtocolError):
        exchange.take(tokens(0, logprobs=(logprob(0),)), 0.0)


@ROLES
def test_a_form_is_complete_only_if_there_is_one(table: Table) -> None:
    tools = (Tool("look_up", "", "{}"),)
    chat = ChatInput((ChatMessage("user", "x"),))
    for wanted, is_right in (
        ({}, False),
        ({"input": chat}, False),
        ({"output": JsonObject()}, True),
        ({"output": JsonSchema("{}")}, True),
        ({"input": replace(chat, tools=tools, tool_choice=ToolChoice.REQUIRED)}, True),
    ):
        exchange = asked(table, **wanted)
        exchange.take(ACCEPTED, 0.0)
        if is_right:
            exchange.take(finished(0, stop=GrammarStop(), n_tokens=0), 0.0)
        else:
            with pytest.raises(RemoteProtocolError):
                exchange.take(finished(0, stop=GrammarStop()), 0.0)


def test_nothing_is_taken_before_it_is_known_what_was_asked() -> None:
    exchange = Exchange(DONOR, 0.0)
    exchange.on(Input.REQUEST, 0.0)
    with pytest.raises(AssertionError):
        exchange.take(ACCEPTED, 0.0)
    exchange.take(ERROR, 0.0)
    assert exchange.state is State.FAILING


def test_no_more_tokens_than_promised_nor_than_asked_for() -> None:
    exchange = after(ACCEPTED, tokens(0, 10))
    with pytest.raises(RemoteProtocolError):
        exchange.take(tokens(10), 0.0)
    after(ACCEPTED, max_tokens=10)
    with pytest.raises(RemoteProtocolError):
        after(ACCEPTED, max_tokens=9)
    for max_new in (0, defaults.MAX_NEW_TOKENS + 1):
        with pytest.raises(RemoteProtocolError):
            after(Accepted(bytes(32), 5, 0, 4096, max_new, "tp/1", 0, 0))


LONGEST = replace(ACCEPTED, max_new=defaults.MAX_NEW_TOKENS)
EACH = defaults.ANSWER_ID_BYTES


def test_an_answer_is_bounded_in_bytes_over_all_choices() -> None:
    exchange = after(LONGEST, n=2)
    piece = bytes(8192 - EACH)
    n_pieces = defaults.MAX_ANSWER_BYTES // 8192 // 2
    for choice in (0, 1):
        exchange.take(Tokens(choice, 0, (7,) * n_pieces, (piece,) * n_pieces), 0.0)
    with pytest.raises(RemoteProtocolError):
        exchange.take(Tokens(0, n_pieces, (7,), (b"",)), 0.0)


def test_log_probabilities_count_too() -> None:
    exchange = after(LONGEST, top_logprobs=3)
    top = TopToken(7, bytes(1024 - EACH), -1.0)
    likely = Tokens(0, 0, (7,), (bytes(1024 - EACH),), (Logprob(-1.0, (top,) * 3),))
    for index in range(defaults.MAX_ANSWER_BYTES // 4096):
        exchange.take(replace(likely, index=index), 0.0)
    with pytest.raises(RemoteProtocolError):
        exchange.take(replace(likely, index=index + 1), 0.0)


def test_the_longest_answer_fits() -> None:
    n = defaults.MAX_NEW_TOKENS
    exchange = after(LONGEST)
    exchange.take(Tokens(0, 0, (7,) * n, (bytes(64),) * n), 0.0)


FRAMES = st.sampled_from(
    [ACCEPTED, ALIVE, REQUEUED, finished(0, 1), finished(1), FINISHED, ERROR]
) | st.builds(tokens, st.integers(0, 11), st.integers(1, 3), st.integers(0, 2))


@given(st.lists(FRAMES, max_size=16))
def test_whatever_comes_what_passes_is_an_answer(frames: list[Frame]) -> None:
    exchange = asked(n=2)
    passed: list[Frame] = []
    for frame in frames:
        try:
            exchange.take(frame, 0.0)
        except RemoteProtocolError:
            continue
        passed.append(frame)
    some = [frame for frame in passed if isinstance(frame, Tokens)]
    assert {frame.choice for frame in some} <= {0, 1}
    for choice in (0, 1):
        n_ids = [len(frame.ids) for frame in some if frame.choice == choice]
        starts = [frame.index for frame in some if frame.choice == choice]
        assert starts == [sum(n_ids[:n]) for n in range(len(n_ids))]
        assert sum(n_ids) <= ACCEPTED.max_new
    assert passed.count(ACCEPTED) <= 1
    if passed and passed[0] != ERROR:
        assert passed[0] == ACCEPTED
    assert not {FINISHED, finished(1)} & {f for f in passed if isinstance(f, Finished)}
    assert all(frame not in (finished(0, 1), ERROR) for frame in passed[:-1])
