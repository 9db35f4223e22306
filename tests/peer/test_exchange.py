"""The table, entry by entry, and what it does not say: tokens, chunks, deadlines.

Start at `test_every_state_takes_what_the_table_says`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.peer import write_exchange
from tokenplace import defaults
from tokenplace.errors import DonorBusy, RemoteProtocolError
from tokenplace.generation import (
    Accepted,
    Alive,
    ChoiceEnd,
    Finished,
    LengthStop,
    Phase,
    Timings,
    Tokens,
    Usage,
)
from tokenplace.peer.exchange import (
    DONOR,
    REQUESTER,
    Exchange,
    Input,
    Limit,
    State,
    Table,
    input_of,
)
from tokenplace.peer.frames import Frame

ACCEPTED = Accepted(bytes(32), 5, 0, 4096, 10, "tp/1", 2000, 0)
ALIVE = Alive(Phase.PREFILL, 0.5, 0)
REQUEUED = Alive(Phase.REQUEUED, 0.0, 1)
END = ChoiceEnd(0, LengthStop())
FINISHED = Finished((END,), Usage(5, 0, 1), Timings(0, 0, 0))
ERROR = DonorBusy()
ENDS = {State.FINISHED, State.FAILED, State.LOST, State.CANCELLED}
ROLES = pytest.mark.parametrize("table", [REQUESTER, DONOR], ids=["requester", "donor"])
BEGIN = {id(REQUESTER): Input.OPENED, id(DONOR): Input.REQUEST}


def tokens(index: int, n_tokens: int = 1, choice: int = 0) -> Tokens:
    return Tokens(choice, index, (7,) * n_tokens, (b"x",) * n_tokens)


def asked(table: Table = REQUESTER, now: float = 0.0) -> Exchange:
    exchange = Exchange(table, now)
    exchange.on(BEGIN[id(table)], now)
    assert exchange.state is State.ASKED
    return exchange


def after(*frames: Frame, max_tokens: int | None = None) -> Exchange:
    exchange = asked()
    exchange.limit_tokens(max_tokens)
    for frame in frames:
        exchange.take(frame, 0.0)
    return exchange


# ---------------------------------------------------------------- the tables


def ways(table: Table) -> dict[State, tuple[Input | Limit, ...]]:
    """Each state that can be reached, and a shortest way to it."""
    found: dict[State, tuple[Input | Limit, ...]] = {next(iter(table)): ()}
    for state in (queue := list(found)):
        for what, target in table.get(state, {}).items():
            if target not in found:
                found[target] = (*found[state], what)
                queue.append(target)
    return found


def exchange_in(table: Table, state: State) -> Exchange:
    exchange = Exchange(table, 0.0)
    for what in ways(table)[state]:
        exchange.on(what, 0.0)
    assert exchange.state is state
    return exchange


@ROLES
def test_every_state_takes_what_the_table_says(table: Table) -> None:
    for state in ways(table):
        for what in (*Input, *Limit):
            exchange = exchange_in(table, state)
            expected = table.get(state, {}).get(what)
            assert exchange.can(what) is (expected is not None)
            if expected is None and not exchange.is_ended:
                # Said by the other side, or else a fault of our own program.
                with pytest.raises((RemoteProtocolError, AssertionError)):
                    exchange.on(what, 0.0)
            else:
                exchange.on(what, 0.0)  # what comes after the end changes nothing
            assert exchange.state is (expected or state)


@ROLES
def test_nothing_a_donor_says_can_be_our_own_fault(table: Table) -> None:
    said = [input_of(frame) for frame in (ACCEPTED, ALIVE, REQUEUED, tokens(0), FINISHED, ERROR)]
    for state in table:
        for what in (*said, Input.CHUNK, Input.END, Input.OUTDATED, Input.REFUSED):
            exchange = exchange_in(table, state)
            if not exchange.can(what):
                with pytest.raises(RemoteProtocolError):
                    exchange.on(what, 0.0)


@ROLES
def test_every_state_can_be_reached_and_left(table: Table) -> None:
    reached = ways(table)
    assert set(reached) == set(table) | ENDS
    for state, row in table.items():
        assert row[Input.CANCEL] is State.CANCELLED
        assert set(row.values()) - {state}
        if state not in (State.ENDING, State.FAILING) or table is DONOR:
            assert any(isinstance(what, Limit) for what in row), "nobody waits for ever"


def test_the_tables_hold_every_state_input_and_limit() -> None:
    assert set(REQUESTER) | set(DONOR) | ENDS == set(State)
    used = {what for table in (REQUESTER, DONOR) for row in table.values() for what in row}
    assert used == {*Input, *Limit}


def test_a_request_is_sealed_at_most_twice() -> None:
    """No way through the table opens more than two streams."""

    def opened(state: State, n_before: int, seen: tuple[State, ...]) -> int:
        most = n_before
        for what, target in REQUESTER.get(state, {}).items():
            if target not in seen:
                n_opened = n_before + (what is Input.OPENED)
                most = max(most, opened(target, n_opened, (*seen, target)))
        return most

    start = next(iter(REQUESTER))
    assert opened(start, 0, (start,)) == 2
    # And no way leads back: a state that was left for another attempt never comes again.
    for state in (State.REOPENING, State.ASKED_AGAIN, State.ACCEPTED, State.ANSWERING):
        assert not {State.OPENING, State.ASKED, State.RENEWING} & set(REQUESTER[state].values())


def test_the_page_shows_these_tables() -> None:
    """Otherwise: `python -m tests.peer.write_exchange`."""
    page = write_exchange.PAGE.read_text("utf-8")
    assert write_exchange.with_tables(page) == page


# ---------------------------------------------------------------- tokens and chunks


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
    for choices in ((), (END, END), (ChoiceEnd(1, LengthStop()),)):
        with pytest.raises(RemoteProtocolError):
            after(ACCEPTED, Finished(choices, FINISHED.usage, FINISHED.timings))


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


def test_an_answer_is_bounded_in_bytes() -> None:
    accepted = Accepted(bytes(32), 5, 0, 4096, defaults.MAX_NEW_TOKENS, "tp/1", 0, 0)
    exchange = after(accepted)
    piece = bytes(8192)
    n_pieces = defaults.MAX_ANSWER_BYTES // len(piece)
    exchange.take(Tokens(0, 0, (7,) * n_pieces, (piece,) * n_pieces), 0.0)
    with pytest.raises(RemoteProtocolError):
        exchange.take(Tokens(0, n_pieces, (7,), (b"x",)), 0.0)


def test_the_end_stands_last_in_the_final_chunk_and_nowhere_else() -> None:
    for end, state in ((FINISHED, State.FINISHED), (ERROR, State.FAILED)):
        exchange = after(ACCEPTED)
        exchange.take_chunk([tokens(0), end], 0.0, is_final=True)
        assert exchange.state is state
        with pytest.raises(RemoteProtocolError):
            after(ACCEPTED).take_chunk([tokens(0), end], 0.0, is_final=False)
        with pytest.raises(RemoteProtocolError):
            after(ACCEPTED).take_chunk([end, tokens(0)], 0.0, is_final=True)
    after(ACCEPTED).take_chunk([tokens(0)], 0.0, is_final=False)
    after().take_chunk([], 0.0, is_final=False)
    for frames in ([], [ALIVE]):
        with pytest.raises(RemoteProtocolError):
            after(ACCEPTED).take_chunk(frames, 0.0, is_final=True)


FRAMES = st.sampled_from([ACCEPTED, ALIVE, REQUEUED, FINISHED, ERROR]) | st.builds(
    tokens, st.integers(0, 11), st.integers(1, 3)
)


@given(st.lists(FRAMES, max_size=12))
def test_whatever_comes_what_passes_is_an_answer(frames: list[Frame]) -> None:
    exchange = asked()
    passed: list[Frame] = []
    for frame in frames:
        try:
            exchange.take(frame, 0.0)
        except RemoteProtocolError:
            continue
        passed.append(frame)
    ids = [len(frame.ids) for frame in passed if isinstance(frame, Tokens)]
    starts = [frame.index for frame in passed if isinstance(frame, Tokens)]
    assert starts == [sum(ids[:n]) for n in range(len(ids))]
    assert sum(ids) <= ACCEPTED.max_new
    assert passed.count(ACCEPTED) <= 1
    if passed and passed[0] != ERROR:
        assert passed[0] == ACCEPTED
    assert all(frame not in (FINISHED, ERROR) for frame in passed[:-1])


# ---------------------------------------------------------------- deadlines

FIRST_TOKEN_S = 3 * 2 + 5  # ACCEPTED says 2 s


def next_due(exchange: Exchange) -> tuple[Limit, float]:
    limit = exchange.next_limit()
    return limit, exchange.due_at(limit)


def test_silence_ends_it_after_ten_seconds() -> None:
    exchange = asked(now=100.0)
    assert next_due(exchange) == (Limit.IDLE, 110.0)
    exchange.touch(105.0)
    assert next_due(exchange) == (Limit.IDLE, 115.0)


def alive_from(start: float, until: float, exchange: Exchange) -> None:
    now = start
    while now < until:
        exchange.touch(now)
        exchange.take_chunk([ALIVE] if exchange.can(Input.ALIVE) else [], now, is_final=False)
        now += defaults.HEARTBEAT_S


def test_life_without_accepted_is_not_enough() -> None:
    exchange = asked()
    alive_from(0.0, 20.0, exchange)
    assert next_due(exchange) == (Limit.ACCEPT, defaults.ACCEPT_TIMEOUT_S)


def test_the_first_token_is_due_by_the_donors_own_estimate() -> None:
    exchange = asked()
    exchange.take(ACCEPTED, 1.0)
    alive_from(1.0, 12.0, exchange)
    assert next_due(exchange) == (Limit.FIRST_TOKEN, 1.0 + FIRST_TOKEN_S)


def test_requeued_renews_it_also_after_tokens() -> None:
    exchange = after(ACCEPTED)
    alive_from(0.0, 9.0, exchange)
    exchange.take(REQUEUED, 9.0)
    alive_from(9.0, 20.0, exchange)
    assert next_due(exchange) == (Limit.FIRST_TOKEN, 9.0 + FIRST_TOKEN_S)
    exchange.take(tokens(0), 20.0)
    exchange.take(REQUEUED, 25.0)
    alive_from(25.0, 35.0, exchange)
    assert next_due(exchange) == (Limit.FIRST_TOKEN, 25.0 + FIRST_TOKEN_S)


@pytest.mark.parametrize("said", [replace(ACCEPTED, eta_ms=(1 << 32) - 1), REQUEUED])
def test_nobody_waits_for_ever_whatever_a_donor_says(said: Frame) -> None:
    exchange = asked(now=100.0)
    if said is REQUEUED:
        exchange.take(ACCEPTED, 100.0)
    for now in range(100, 400, 5):
        exchange.touch(now)
        exchange.take(said if said is REQUEUED or now == 100 else ALIVE, now)
    assert next_due(exchange) == (Limit.FIRST_TOKEN, 100.0 + defaults.MAX_WAIT_S)


def test_then_a_token_every_ten_seconds() -> None:
    exchange = after(ACCEPTED)
    exchange.take(tokens(0), 3.0)
    alive_from(3.0, 13.0, exchange)
    assert next_due(exchange) == (Limit.PROGRESS, 13.0)
    exchange.take(tokens(1), 12.0)
    alive_from(12.0, 22.0, exchange)
    assert next_due(exchange) == (Limit.PROGRESS, 22.0)


def test_silence_explains_a_lack_of_progress() -> None:
    exchange = after(ACCEPTED)
    exchange.touch(5.0)
    exchange.take(tokens(0), 5.0)
    assert exchange.due_at(Limit.PROGRESS) == exchange.due_at(Limit.IDLE)
    assert exchange.next_limit() is Limit.IDLE


@ROLES
def test_no_answer_takes_longer_than_the_longest(table: Table) -> None:
    exchange = asked(table, now=5.0)
    exchange.take(Accepted(bytes(32), 5, 0, 4096, 1000, "tp/1", 2000, 0), 5.0)
    for second in range(5, 1800, 5):
        exchange.touch(float(second))
        exchange.take(tokens(second // 5 - 1), float(second))
    exchange.touch(1800.0)
    assert next_due(exchange) == (Limit.WHOLE, 5.0 + defaults.MAX_EXCHANGE_S)


def test_a_second_attempt_has_its_own_time() -> None:
    exchange = asked(now=5.0)
    exchange.on(Input.OUTDATED, 10.0)
    assert next_due(exchange) == (Limit.RENEW, 10.0 + defaults.CONNECT_TIMEOUT_S)
    exchange.on(Input.RENEWED, 12.0)
    assert next_due(exchange) == (Limit.CONNECT, 12.0 + defaults.CONNECT_TIMEOUT_S)
    exchange.on(Input.OPENED, 13.0)
    assert next_due(exchange) == (Limit.IDLE, 13.0 + defaults.IDLE_TIMEOUT_S)
    assert exchange.due_at(Limit.WHOLE) == 13.0 + defaults.MAX_EXCHANGE_S


def test_a_donor_waits_for_a_request_and_for_each_write() -> None:
    exchange = Exchange(DONOR, 5.0)
    exchange.touch(7.0)
    assert next_due(exchange) == (Limit.REQUEST, 5.0 + defaults.REQUEST_TIMEOUT_S)
    exchange.on(Input.REQUEST, 8.0)
    exchange.touch(9.0)
    assert next_due(exchange) == (Limit.WRITE, 9.0 + defaults.WRITE_TIMEOUT_S)
