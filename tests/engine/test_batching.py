"""Tokens of one tick as one message: nothing lost, nothing moved, nothing late."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenplace.engine.batching import TokenBatcher
from tokenplace.engine.messages import Done, FromWorker, NewTokens, Progress

TICK_S = 0.05


def token(index: int, request: int = 1, choice: int = 0) -> NewTokens:
    return NewTokens(request, choice, index, (index,), (b"%d " % index,), ())


def done(request: int = 1) -> Done:
    return Done(request, ((0, "length"),), 1, 0, 1, 0, 0, 0, 1.0, 1.0)


@given(st.lists(st.floats(0.0, 0.2), min_size=1, max_size=60))
def test_every_token_arrives_once_in_order_and_within_a_tick_of_the_next_step(
    gaps: list[float],
) -> None:
    batcher = TokenBatcher(TICK_S)
    now, out, made_at = 0.0, [], {}
    for index, gap in enumerate(gaps):
        now += gap
        made_at[index] = now
        events: list[FromWorker] = [token(index)]
        if index == len(gaps) - 1:
            events.append(done())
        for event in batcher.put(events, now):
            out.append(event)
            if isinstance(event, NewTokens):
                assert event.index == event.ids[0]
                assert now - made_at[event.index] <= TICK_S + 0.2
    assert out[-1] == done()
    tokens = [event for event in out if isinstance(event, NewTokens)]
    assert [i for event in tokens for i in event.ids] == list(range(len(gaps)))
    assert b"".join(p for event in tokens for p in event.pieces) == b"".join(
        b"%d " % i for i in range(len(gaps))
    )


def test_the_first_token_leaves_at_once_and_the_others_on_the_tick() -> None:
    batcher = TokenBatcher(TICK_S)
    assert batcher.put([token(0)], 10.0) == [token(0)]
    assert batcher.put([token(1)], 10.02) == []
    assert batcher.put([token(2)], 10.04) == []
    assert batcher.put([token(3)], 10.06) == [
        NewTokens(1, 0, 1, (1, 2, 3), (b"1 ", b"2 ", b"3 "), ())
    ]
    assert batcher.put([token(4)], 10.08) == []
    assert next(e for e in batcher.put([token(5)], 10.11) if isinstance(e, NewTokens)).ids == (4, 5)


def test_other_events_never_wait_and_requests_do_not_mix() -> None:
    batcher = TokenBatcher(TICK_S)
    progress = Progress(2, "queued", 0.0, 1)
    assert batcher.put([token(0), progress], 0.0) == [token(0), progress]
    assert batcher.put([token(1), token(0, request=2)], 0.01) == [token(0, request=2)]
    assert batcher.put([done()], 0.02) == [token(1), done()]
    assert batcher.put([token(1, request=2), done(2)], 0.03) == [token(1, request=2), done(2)]


def test_choices_of_one_request_stay_apart() -> None:
    batcher = TokenBatcher(TICK_S)
    assert batcher.put([token(0)], 0.0) == [token(0)]
    assert batcher.put([token(0, choice=1), token(1)], 0.01) == []
    assert batcher.put([token(1, choice=1)], 0.02) == []
    out = batcher.put([token(2), done()], 0.03)
    assert out == [
        NewTokens(1, 1, 0, (0, 1), (b"0 ", b"1 "), ()),
        NewTokens(1, 0, 1, (1, 2), (b"1 ", b"2 "), ()),
        done(),
    ]


def test_log_probabilities_stay_with_their_tokens() -> None:
    batcher = TokenBatcher(TICK_S)
    likely = [
        NewTokens(1, 0, i, (i,), (b"x",), ((-float(i), ((i, b"x", -float(i)),)),)) for i in range(3)
    ]
    batcher.put(likely[:1], 0.0)
    (joined, _) = batcher.put([*likely[1:], done()], 0.01)
    assert isinstance(joined, NewTokens)
    assert [own for own, _ in joined.logprobs] == [-1.0, -2.0]


def test_a_cancelled_request_is_forgotten() -> None:
    batcher = TokenBatcher(TICK_S)
    batcher.put([token(0)], 0.0)
    batcher.put([token(1)], 0.01)
    batcher.forget(1)
    assert batcher.put([], 1.0) == []
