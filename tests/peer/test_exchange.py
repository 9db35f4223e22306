from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.peer.exchange_lab import make_request
from tokenplace import defaults
from tokenplace.errors import (
    DeadlineExceeded,
    DonorBusy,
    DonorSilent,
    RemoteProtocolError,
    TokenplaceError,
)
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
from tokenplace.peer.exchange import ENDED, TRANSITIONS, Deadlines, Exchange, State
from tokenplace.peer.frames import Frame

ACCEPTED = Accepted(bytes(32), 5, 0, 4096, 10, "tp/1", 2000, 0)
ALIVE = Alive(Phase.PREFILL, 0.5, 0)
END = ChoiceEnd(0, LengthStop())
FINISHED = Finished((END,), Usage(5, 0, 1), Timings(0, 0, 0))
ERROR = DonorBusy()


def tokens(index: int, n_tokens: int = 1, choice: int = 0) -> Tokens:
    return Tokens(choice, index, (7,) * n_tokens, (b"x",) * n_tokens)


def after(*frames: Frame, max_tokens: int | None = None) -> Exchange:
    exchange = Exchange(make_request(max_tokens=max_tokens))
    for frame in frames:
        exchange.check(frame)
    return exchange


TO_STATE: dict[State, tuple[Frame, ...]] = {
    State.ASKED: (),
    State.ANSWERING: (ACCEPTED,),
    State.FINISHED: (ACCEPTED, FINISHED),
    State.FAILED: (ERROR,),
}


@pytest.mark.parametrize("frame", [ACCEPTED, ALIVE, tokens(0), FINISHED, ERROR], ids=repr)
@pytest.mark.parametrize("state", State)
def test_every_state_takes_what_the_table_says(state: State, frame: Frame) -> None:
    exchange = after(*TO_STATE[state])
    assert exchange.state is state
    kind = TokenplaceError if isinstance(frame, TokenplaceError) else type(frame)
    expected = TRANSITIONS[state].get(kind)
    if expected is None:
        with pytest.raises(RemoteProtocolError):
            exchange.check(frame)
        assert exchange.state is state
    else:
        exchange.check(frame)
        assert exchange.state is expected


def test_the_table_ends_where_it_says() -> None:
    assert {state for state in State if not TRANSITIONS[state]} == ENDED


def test_tokens_of_a_choice_are_contiguous() -> None:
    exchange = after(ACCEPTED, tokens(0, 2), ALIVE, tokens(2), tokens(3, 3))
    assert exchange.n_tokens == 6
    for index in (0, 5, 7):
        with pytest.raises(RemoteProtocolError):
            exchange.check(tokens(index))
    exchange.check(tokens(6))


def test_only_the_choice_asked_for() -> None:
    with pytest.raises(RemoteProtocolError):
        after(ACCEPTED, tokens(0, choice=1))
    for choices in ((), (END, END), (ChoiceEnd(1, LengthStop()),)):
        with pytest.raises(RemoteProtocolError):
            after(ACCEPTED, Finished(choices, FINISHED.usage, FINISHED.timings))


def test_no_more_tokens_than_promised_nor_than_asked_for() -> None:
    exchange = after(ACCEPTED, tokens(0, 10))
    with pytest.raises(RemoteProtocolError):
        exchange.check(tokens(10))
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
    exchange.check(Tokens(0, 0, (7,) * n_pieces, (piece,) * n_pieces))
    with pytest.raises(RemoteProtocolError):
        exchange.check(Tokens(0, n_pieces, (7,), (b"x",)))


def test_the_end_stands_last_in_the_final_chunk_and_nowhere_else() -> None:
    for end in (FINISHED, ERROR):
        after(ACCEPTED).check_chunk([tokens(0), end], is_final=True)
        with pytest.raises(RemoteProtocolError):
            after(ACCEPTED).check_chunk([tokens(0), end], is_final=False)
        with pytest.raises(RemoteProtocolError):
            after(ACCEPTED).check_chunk([end, tokens(0)], is_final=True)
    after(ACCEPTED).check_chunk([tokens(0)], is_final=False)
    after().check_chunk([], is_final=False)
    for frames in ([], [ALIVE]):
        with pytest.raises(RemoteProtocolError):
            after(ACCEPTED).check_chunk(frames, is_final=True)


FRAMES = st.sampled_from([ACCEPTED, ALIVE, FINISHED, ERROR]) | st.builds(
    tokens, st.integers(0, 11), st.integers(1, 3)
)


@given(st.lists(FRAMES, max_size=12))
def test_whatever_comes_what_passes_is_an_answer(frames: list[Frame]) -> None:
    exchange = Exchange(make_request())
    passed: list[Frame] = []
    for frame in frames:
        try:
            exchange.check(frame)
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


def test_silence_ends_it_after_ten_seconds() -> None:
    deadlines = Deadlines(100.0)
    assert deadlines.next_at == 110.0
    deadlines.on_bytes(105.0)
    assert deadlines.next_at == 115.0
    assert isinstance(deadlines.error(115.0), DonorSilent)


def alive_from(start: float, until: float, deadlines: Deadlines) -> None:
    now = start
    while now < until:
        deadlines.on_bytes(now)
        deadlines.on_frame(ALIVE, now)
        now += defaults.HEARTBEAT_S


def test_life_without_accepted_is_not_enough() -> None:
    deadlines = Deadlines(0.0)
    alive_from(0.0, 20.0, deadlines)
    assert deadlines.next_at == defaults.ACCEPT_TIMEOUT_S
    assert isinstance(deadlines.error(defaults.ACCEPT_TIMEOUT_S), DeadlineExceeded)


def test_the_first_token_is_due_by_the_donors_own_estimate() -> None:
    deadlines = Deadlines(0.0)
    deadlines.on_frame(ACCEPTED, 1.0)
    alive_from(1.0, 12.0, deadlines)
    assert deadlines.next_at == 1.0 + FIRST_TOKEN_S
    assert isinstance(deadlines.error(12.0), DeadlineExceeded)


def test_requeued_renews_it() -> None:
    deadlines = Deadlines(0.0)
    deadlines.on_frame(ACCEPTED, 0.0)
    alive_from(0.0, 9.0, deadlines)
    deadlines.on_frame(Alive(Phase.REQUEUED, 0.0, 1), 9.0)
    alive_from(9.0, 20.0, deadlines)
    assert deadlines.next_at == 9.0 + FIRST_TOKEN_S


def test_then_a_token_every_ten_seconds() -> None:
    deadlines = Deadlines(0.0)
    deadlines.on_frame(ACCEPTED, 0.0)
    deadlines.on_frame(tokens(0), 3.0)
    alive_from(3.0, 13.0, deadlines)
    assert deadlines.next_at == 13.0
    deadlines.on_frame(tokens(1), 12.0)
    alive_from(12.0, 22.0, deadlines)
    assert deadlines.next_at == 22.0


def test_no_answer_takes_longer_than_the_longest() -> None:
    deadlines = Deadlines(0.0)
    deadlines.on_frame(ACCEPTED, 0.0)
    for second in range(0, 1800, 5):
        deadlines.on_bytes(float(second))
        deadlines.on_frame(tokens(0), float(second))
    assert deadlines.next_at == defaults.MAX_EXCHANGE_S
    assert isinstance(deadlines.error(defaults.MAX_EXCHANGE_S), DeadlineExceeded)
