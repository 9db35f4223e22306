"""The table, entry by entry, and what it does not say: chunks, deadlines. What is in frames is in
test_contents.py.

Start at `test_every_state_takes_what_the_table_says`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.peer import write_exchange
from tests.peer.exchanges import (
    ACCEPTED,
    ALIVE,
    ENDS,
    ERROR,
    FINISHED,
    REQUEUED,
    ROLES,
    after,
    asked,
    tokens,
)
from tokenplace import defaults
from tokenplace.errors import RemoteProtocolError
from tokenplace.generation import Accepted, Alive, Phase
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


# ---------------------------------------------------------------- chunks


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


def moving(n: int) -> Alive:
    return Alive(Phase.PREFILL, n / 1000, 0)


def test_nobody_waits_for_ever_whatever_a_donor_promises() -> None:
    exchange = asked(now=100.0)
    exchange.take(replace(ACCEPTED, eta_ms=(1 << 32) - 1), 100.0)
    for now in range(100, 400, 5):
        exchange.touch(now)
        exchange.take(moving(now), now)
    assert next_due(exchange) == (Limit.FIRST_TOKEN, 100.0 + defaults.MAX_WAIT_S)


def test_a_donor_may_learn_that_it_takes_longer() -> None:
    exchange = after(replace(ACCEPTED, eta_ms=4000))
    exchange.take(Alive(Phase.QUEUED, 0.0, 2, 2000), 2.0)
    assert exchange.due_at(Limit.FIRST_TOKEN) == 3 * 4 + 5
    exchange.take(Alive(Phase.QUEUED, 0.0, 2, 6000), 4.0)
    assert exchange.due_at(Limit.FIRST_TOKEN) == 3 * 10 + 5
    exchange.take(Alive(Phase.QUEUED, 0.0, 1, 1000), 5.0)
    assert exchange.due_at(Limit.FIRST_TOKEN) == 3 * 10 + 5, "what was promised holds"
    exchange.take(Alive(Phase.QUEUED, 0.0, 1, (1 << 32) - 1), 6.0)
    assert exchange.due_at(Limit.FIRST_TOKEN) == defaults.MAX_WAIT_S
    assert exchange.due_at(Limit.STILL) == 5.0 + defaults.QUEUE_STILL_TIMEOUT_S


def test_requeued_renews_nothing_once_it_was_said_too_often() -> None:
    exchange = after(replace(ACCEPTED, eta_ms=20_000))
    for now in range(5, 60, 5):
        exchange.touch(now)
        exchange.take(REQUEUED, now)
    last_s = 5 * defaults.MAX_REQUEUES
    assert exchange.due_at(Limit.FIRST_TOKEN) == last_s + 3 * 20 + 5
    assert exchange.due_at(Limit.STILL) == last_s + defaults.QUEUE_STILL_TIMEOUT_S
    exchange.take(tokens(0), 60.0)
    exchange.take(REQUEUED, 61.0)
    assert exchange.due_at(Limit.FIRST_TOKEN) == 60 + 3 * 20 + 5, "a token moves it all the same"


def test_all_that_is_waited_for_is_counted_together() -> None:
    """A token now and then buys no new wait."""
    exchange = after(replace(ACCEPTED, eta_ms=90_000))
    exchange.take(tokens(0), 100.0)
    exchange.take(tokens(1), 105.0)
    exchange.take(REQUEUED, 106.0)
    assert exchange.due_at(Limit.FIRST_TOKEN) == 105 + defaults.MAX_WAIT_S - 100
    exchange.take(tokens(2), 205.0)
    exchange.take(REQUEUED, 206.0)
    assert exchange.due_at(Limit.FIRST_TOKEN) == 205 + defaults.MAX_WAIT_S - 200


def test_heartbeats_that_show_no_movement_are_not_enough() -> None:
    exchange = after(replace(ACCEPTED, eta_ms=60_000))
    exchange.take(moving(1), 2.0)
    alive_from(4.0, 30.0, exchange)
    assert next_due(exchange)[0] is Limit.STILL
    assert exchange.due_at(Limit.STILL) == 4.0 + defaults.STILL_TIMEOUT_S, "ALIVE has moved once"


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


@pytest.mark.parametrize("end", [FINISHED, ERROR])
def test_what_is_left_at_the_end_must_be_read_in_time(end: Frame) -> None:
    """However a requester goes on reading a little."""
    exchange = after(ACCEPTED, tokens(0), table=DONOR)
    write_s, ending_s = defaults.WRITE_TIMEOUT_S, defaults.ENDING_TIMEOUT_S
    exchange.touch(100.0)
    assert exchange.due_at(Limit.WRITE) == 100 + write_s
    exchange.take(end, 100.0)
    exchange.touch(100 + ending_s - 2 * write_s)
    assert exchange.due_at(Limit.WRITE) == 100 + ending_s - write_s
    exchange.touch(100 + ending_s - 1)
    assert exchange.due_at(Limit.WRITE) == 100 + ending_s
