from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.peer.exchange_lab import make_request
from tokenplace import defaults
from tokenplace.errors import DonorBusy, DonorInternalError
from tokenplace.generation import (
    Accepted,
    Alive,
    ChoiceEnd,
    EogStop,
    Event,
    Finished,
    Logprob,
    Phase,
    Timings,
    Tokens,
    TopToken,
    Usage,
)
from tokenplace.peer.exchange import REQUESTER, Exchange, Input
from tokenplace.peer.frames import decode_frames
from tokenplace.peer.outbox import Outbox
from tokenplace.sealing.answer import MAX_FRAMES_BYTES

ACCEPTED = Accepted(bytes(32), 5, 0, 4096, 1000, "tp/1", 10, 0)
REST = Usage(5, 0, 1), Timings(0, 0, 0)
FINISHED = Finished((ChoiceEnd(0, EogStop(2)),), *REST)
TICK = defaults.TOKEN_TICK_S


def token(index: int, piece: bytes = b"x", choice: int = 0) -> Tokens:
    return Tokens(choice, index, (index,), (piece,))


def taken(outbox: Outbox, now: float) -> tuple[list[object], bool]:
    frames, is_final = outbox.take(now)
    return list(decode_frames(frames)), is_final


def accepted_at(now: float) -> Outbox:
    outbox = Outbox(now)
    outbox.put(ACCEPTED, now)
    assert taken(outbox, now) == ([ACCEPTED], False)
    return outbox


def test_accepted_and_the_first_token_leave_at_once() -> None:
    outbox = Outbox(0.0)
    outbox.put(ACCEPTED, 1.0)
    assert outbox.due_at == 1.0
    taken(outbox, 1.0)
    outbox.put(token(0), 1.5)
    assert outbox.due_at == 1.5
    assert taken(outbox, 1.5) == ([token(0)], False)


def test_later_tokens_leave_together_on_the_tick() -> None:
    outbox = accepted_at(0.0)
    outbox.put(token(0), 1.0)
    taken(outbox, 1.0)
    outbox.put(token(1), 1.01)
    outbox.put(token(2), 1.02)
    assert outbox.due_at == pytest.approx(1.0 + TICK)
    assert taken(outbox, outbox.due_at) == ([Tokens(0, 1, (1, 2), (b"x", b"x"))], False)


@given(st.floats(0, 0.9 * defaults.HEARTBEAT_S))
def test_no_token_waits_longer_than_a_tick(after_first: float) -> None:
    outbox = accepted_at(0.0)
    outbox.put(token(0), 1.0)
    taken(outbox, 1.0)
    now = 1.0 + after_first
    outbox.put(token(1), now)
    assert now <= outbox.due_at <= now + TICK + 1e-9
    late_s = (outbox.due_at - 1.0) % TICK
    is_on_tick = min(late_s, TICK - late_s) < 1e-6
    # The tick that has just passed was not used: an engine on the same ticks is a little late.
    assert is_on_tick or (outbox.due_at == now and late_s <= defaults.TOKEN_TICK_SLACK_S + 1e-9)


def test_a_tick_is_used_once() -> None:
    outbox = accepted_at(0.0)
    outbox.put(token(0), 1.0)
    taken(outbox, 1.0)
    outbox.put(token(1), 1.0 + TICK + 0.01)
    assert outbox.due_at == 1.0 + TICK + 0.01
    taken(outbox, outbox.due_at)
    outbox.put(token(2), 1.0 + TICK + 0.015)
    assert outbox.due_at == pytest.approx(1.0 + 2 * TICK)


def test_the_end_takes_the_last_tokens_with_it() -> None:
    outbox = accepted_at(0.0)
    outbox.put(token(0), 0.0)
    taken(outbox, 0.0)
    outbox.put(token(1), 0.01)
    outbox.put(FINISHED, 0.02)
    assert outbox.due_at == 0.02
    assert taken(outbox, 0.02) == ([token(1), FINISHED], True)


def test_an_error_may_be_all_there_is() -> None:
    outbox = Outbox(0.0)
    outbox.put(DonorBusy("x"), 0.0)
    (error,), is_final = taken(outbox, 0.0)
    assert isinstance(error, DonorBusy)
    assert is_final


def test_a_heartbeat_two_seconds_after_the_last_chunk() -> None:
    outbox = accepted_at(0.0)
    assert outbox.due_at == defaults.HEARTBEAT_S
    assert taken(outbox, 2.0) == ([Alive(Phase.PREFILL, 0.0, 0)], False)
    assert outbox.due_at == 2.0 + defaults.HEARTBEAT_S
    outbox.put(Alive(Phase.PREFILL, 0.25, 0), 2.5)
    outbox.put(Alive(Phase.PREFILL, 0.5, 0), 3.5)
    assert outbox.due_at == 4.0
    assert taken(outbox, 4.0) == ([Alive(Phase.PREFILL, 0.5, 0)], False)
    outbox.put(token(0), 5.0)
    taken(outbox, 5.0)
    assert outbox.due_at == 7.0
    assert taken(outbox, 7.0) == ([Alive(Phase.DECODE, 1 / 1000, 0)], False)


def test_a_queued_request_says_so() -> None:
    outbox = Outbox(0.0)
    outbox.put(Accepted(bytes(32), 5, 0, 4096, 10, "tp/1", 10, position=3), 0.0)
    taken(outbox, 0.0)
    assert taken(outbox, 2.0) == ([Alive(Phase.QUEUED, 0.0, 3)], False)


def test_the_wait_counts_down_from_what_was_said_last() -> None:
    outbox = Outbox(0.0)
    outbox.put(Accepted(bytes(32), 5, 0, 4096, 10, "tp/1", 9000, position=3), 0.0)
    taken(outbox, 0.0)
    assert taken(outbox, 2.0) == ([Alive(Phase.QUEUED, 0.0, 3, 7000)], False)
    outbox.put(Alive(Phase.QUEUED, 0.0, 2, 1000), 3.5)
    assert taken(outbox, 4.0) == ([Alive(Phase.QUEUED, 0.0, 2, 500)], False)
    assert taken(outbox, 6.0) == ([Alive(Phase.QUEUED, 0.0, 2, 0)], False)
    outbox.put(Alive(Phase.REQUEUED, 0.0, 2, 3000), 6.0)
    assert taken(outbox, 6.0) == ([Alive(Phase.REQUEUED, 0.0, 2, 3000)], False)
    assert taken(outbox, 8.0) == ([Alive(Phase.QUEUED, 0.0, 2, 1000)], False)


def test_before_accepted_a_heartbeat_says_nothing() -> None:
    outbox = Outbox(0.0)
    assert outbox.due_at == defaults.HEARTBEAT_S
    assert outbox.take(2.0) == (b"", False)
    assert outbox.due_at == 2.0 + defaults.HEARTBEAT_S


def test_requeued_leaves_at_once_since_it_renews_a_deadline() -> None:
    outbox = accepted_at(0.0)
    requeued = Alive(Phase.REQUEUED, 0.0, 2)
    outbox.put(requeued, 0.5)
    assert outbox.due_at == 0.5
    outbox.put(token(0), 0.5)
    assert taken(outbox, 0.5) == ([token(0), Alive(Phase.DECODE, 1 / 1000, 0)], False)


def test_tokens_over_a_chunk_leave_in_several_at_once() -> None:
    outbox = accepted_at(0.0)
    piece = bytes(5000)
    outbox.put(token(0, piece), 0.0)
    taken(outbox, 0.0)
    for index in range(1, 6):
        outbox.put(token(index, piece), 0.01)
    assert outbox.due_at == 0.01
    sizes = []
    while outbox.due_at <= 0.01:
        frames, _ = outbox.take(0.01)
        assert len(frames) <= MAX_FRAMES_BYTES
        (tokens,) = decode_frames(frames)
        assert isinstance(tokens, Tokens)
        sizes.append(len(tokens.ids))
    assert sizes == [2, 2, 1]


def test_choices_leave_together_each_in_a_frame() -> None:
    outbox = accepted_at(0.0)
    outbox.put(token(0), 1.0)
    taken(outbox, 1.0)
    for event in (token(3, choice=2), token(1), token(4, choice=2), token(2)):
        outbox.put(event, 1.01)
    assert outbox.due_at == pytest.approx(1.0 + TICK)
    both = [Tokens(2, 3, (3, 4), (b"x",) * 2), Tokens(0, 1, (1, 2), (b"x",) * 2)]
    assert taken(outbox, outbox.due_at) == (both, False)


def test_the_choice_that_is_furthest_shows_the_progress() -> None:
    outbox = accepted_at(0.0)
    outbox.put(Tokens(1, 400, (1,) * 100, (b"",) * 100), 1.0)
    outbox.put(token(0), 1.0)
    taken(outbox, 1.0)
    assert taken(outbox, outbox.due_at) == ([Alive(Phase.DECODE, 0.5, 0)], False)


def likely(index: int, choice: int = 0, piece: bytes = b"word") -> Tokens:
    """A token with as many likely ones, and as many bytes in their numbers, as there may be."""
    top = TopToken((1 << 32) - 1, piece, -1.5)
    logprob = Logprob(-0.5, (top,) * defaults.MAX_TOP_LOGPROBS)
    return Tokens(choice, index, ((1 << 32) - 1,), (piece,), (logprob,))


def test_the_most_log_probabilities_leave_in_several_chunks_at_once() -> None:
    """Of nearly every choice there may be, six steps within a tick."""
    outbox, n_steps = accepted_at(0.0), 6
    outbox.put(likely(0, defaults.MAX_CHOICES - 1), 0.0)
    taken(outbox, 0.0)
    for step in range(n_steps):
        for choice in range(defaults.MAX_CHOICES - 1):
            outbox.put(likely(step, choice), 0.01)
    assert outbox.due_at == 0.01
    outbox.put(FINISHED, 0.01)
    received: list[object] = []
    n_chunks, is_final = 0, False
    while not is_final:
        assert outbox.due_at == 0.01
        frames, is_final = outbox.take(0.01)
        assert len(frames) <= MAX_FRAMES_BYTES
        received += decode_frames(frames)
        n_chunks += 1
    assert n_chunks > 2
    assert received.pop() == FINISHED
    for choice in range(defaults.MAX_CHOICES - 1):
        own = [frame for frame in received if isinstance(frame, Tokens) and frame.choice == choice]
        assert [index for t in own for index in range(t.index, t.index + len(t.ids))] == [*range(6)]
        assert [each for t in own for each in t.logprobs] == [*likely(0).logprobs] * n_steps


def test_likely_tokens_that_fit_no_chunk_are_an_internal_error() -> None:
    outbox = accepted_at(0.0)
    outbox.put(likely(0, piece=bytes(400)), 0.0)
    with pytest.raises(DonorInternalError):
        outbox.put(likely(1, piece=bytes(600)), 0.0)


def test_requeued_is_said_at_once_and_once() -> None:
    outbox = accepted_at(0.0)
    outbox.put(Alive(Phase.REQUEUED, 0.0, 2), 1.0)
    assert outbox.due_at == 1.0
    assert taken(outbox, 1.0) == ([Alive(Phase.REQUEUED, 0.0, 2)], False)
    assert taken(outbox, outbox.due_at) == ([Alive(Phase.QUEUED, 0.0, 2)], False)


def test_a_token_that_fits_no_chunk_is_an_internal_error() -> None:
    outbox = accepted_at(0.0)
    with pytest.raises(DonorInternalError):
        outbox.put(token(0, bytes(MAX_FRAMES_BYTES)), 0.0)


PIECES = st.lists(st.binary(max_size=3000), min_size=1, max_size=12)
STEPS = st.tuples(
    st.floats(0, 0.2),
    st.tuples(st.integers(0, 3), PIECES) | st.sampled_from([Phase.PREFILL, Phase.REQUEUED]),
)


@given(st.lists(STEPS, max_size=30), st.sampled_from([None, 0, 3]))
def test_whatever_goes_in_comes_out_in_order_and_in_time(
    steps: list[tuple[float, tuple[int, list[bytes]] | Phase]], n_top: int | None
) -> None:
    outbox, exchange = Outbox(0.0), Exchange(REQUESTER, 0.0)
    exchange.expect(make_request(n=4, top_logprobs=n_top))
    exchange.on(Input.OPENED, 0.0)
    now = 0.0
    outbox.put(ACCEPTED, now)
    sent: dict[int, list[bytes]] = {choice: [] for choice in range(4)}
    received: dict[int, list[bytes]] = {choice: [] for choice in range(4)}

    def send_until(until: float) -> bool:
        while outbox.due_at <= until:
            frames, is_final = outbox.take(outbox.due_at)
            assert len(frames) <= MAX_FRAMES_BYTES
            events = decode_frames(frames)
            exchange.take_chunk(events, outbox.due_at, is_final=is_final)
            for event in events:
                if isinstance(event, Tokens):
                    received[event.choice] += event.pieces
            if is_final:
                return True
        return False

    for pause, step in steps:
        now += pause
        assert not send_until(now)
        if isinstance(step, Phase):
            event: Event = Alive(step, 0.5, 1)
        else:
            choice, pieces = step
            logprobs = () if n_top is None else (logprob(n_top),) * len(pieces)
            index = len(sent[choice])
            event = Tokens(choice, index, (1,) * len(pieces), tuple(pieces), logprobs)
            sent[choice] += pieces
        outbox.put(event, now)
    usage = Usage(5, 0, sum(map(len, sent.values())))
    ends = tuple(ChoiceEnd(choice, EogStop(2)) for choice in range(4))
    outbox.put(Finished(ends, usage, Timings(0, 0, 0)), now)
    assert send_until(now)
    assert received == sent


def logprob(n_top: int) -> Logprob:
    return Logprob(-0.5, tuple(TopToken(n, bytes(n), -1.0) for n in range(n_top)))
