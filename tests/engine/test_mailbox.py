"""What one request gets, from one worker or from several."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engine.parts import submit
from tokenplace import defaults
from tokenplace.engine.frames import BadFrame
from tokenplace.engine.mailbox import Answer, Mail, Reply, Request
from tokenplace.engine.messages import (
    Count,
    Counted,
    Done,
    Embed,
    Embedded,
    NewTokens,
    Progress,
    Queued,
    Refused,
    Score,
    Scored,
    Submit,
)
from tokenplace.generation import Alive, Phase

DIGEST = b"d" * 32
QUEUED = Queued(0, DIGEST, 5, 2, 64, 4, 0, 1)
EMBED = Embed(0, "alice", ("a", "b", "c"), None)
SCORE = Score(0, "alice", (("a", False),), (2, 3), b"", (), b"", 0)


def tokens(index: int, *pieces: bytes, choice: int = 0) -> NewTokens:
    ids = tuple(range(10 + index, 10 + index + len(pieces)))
    return NewTokens(0, choice, index, ids, pieces, ())


def done(*ends: tuple[int, int | bytes | str], n_completion: int = 0) -> Done:
    return Done(0, ends, 5, 4, n_completion, 1, 2, 3, 100.0, 50.0)


def answer_to(asked: Request, *taken: Reply) -> Answer:
    answer = Answer(asked, b"", now=0.0)
    for message in taken:
        assert not answer.take(message, now=1.0)
    return answer


async def read(answer: Answer, n: int) -> list[Mail]:
    return [await answer.receive() for _ in range(n)]


def died(answer: Answer) -> Request | None:
    """Its worker dies; what the next one is asked, 10 s after the first."""
    answer.requeue(now=5.0)
    return answer.again(now=10.0)


# ---------------------------------------------------------------- a worker that goes astray


@pytest.mark.parametrize(
    "nonsense",
    [
        tokens(1, b"x"),
        tokens(0, b"x", b"x", b"x", b"x", b"x"),
        tokens(0, b"x", choice=2),
        replace(tokens(0, b"x", b"y"), pieces=(b"x",)),
        replace(tokens(0, b"x"), pieces=("x",)),  # type: ignore[arg-type]
        replace(tokens(0, b"x"), logprobs=((0.0, ()), (0.0, ()))),
        Refused(0, "no such code", ""),
        Embedded(0, 1, (b"v",), (1,), False),
    ],
    ids=[
        *("gap", "more than asked for", "no such choice", "no bytes", "text for bytes"),
        *("too many log-probabilities", "unknown code", "a gap in parts"),
    ],
)
def test_nonsense_is_not_passed_on(nonsense: Reply) -> None:
    with pytest.raises(BadFrame):
        answer_to(submit(n=2), QUEUED).take(nonsense, now=1.0)


def test_tokens_before_the_request_was_accepted_are_nonsense() -> None:
    with pytest.raises(BadFrame):
        answer_to(submit()).take(tokens(0, b"x"), now=1.0)


def test_a_phase_that_does_not_exist_is_not_passed_on() -> None:
    with pytest.raises(ValueError, match="dreaming"):
        answer_to(submit(), QUEUED).take(Progress(0, "dreaming", 0.0, 0), now=1.0)


# ---------------------------------------------------------------- one worker


async def test_what_comes_is_handed_on_and_the_last_is_known() -> None:
    answer = answer_to(submit(), QUEUED, tokens(0, b"a", b"b"))
    end = done((0, "length"), n_completion=2)
    assert answer.take(end, now=2.0)
    assert await read(answer, 3) == [QUEUED, tokens(0, b"a", b"b"), end]


def test_progress_in_the_answer_is_the_share_of_its_longest() -> None:
    answer = answer_to(submit(n=2), QUEUED, tokens(0, b"a"), tokens(0, b"b", b"c", choice=1))
    answer.take(Progress(0, Phase.DECODE, 0.0, 0), now=1.0)
    assert answer.alive(now=1.0) == Alive(Phase.DECODE, 3 / 8, 0)


def test_the_wait_counts_down_while_nothing_is_heard() -> None:
    answer = answer_to(submit(), QUEUED)
    answer.take(Progress(0, Phase.QUEUED, 0.0, 2, 4000), now=10.0)
    assert answer.alive(now=10.0) == Alive(Phase.QUEUED, 0.0, 2, 4000)
    assert answer.alive(now=12.5) == Alive(Phase.QUEUED, 0.0, 2, 1500)
    assert answer.alive(now=15.0) == Alive(Phase.QUEUED, 0.0, 2, 0)
    answer.take(Progress(0, Phase.QUEUED, 0.0, 1, 3000), now=15.0)
    assert answer.alive(now=15.0) == Alive(Phase.QUEUED, 0.0, 1, 3000)


async def test_that_it_has_begun_is_told_at_once() -> None:
    answer = answer_to(submit(), QUEUED, Progress(0, Phase.QUEUED, 0.0, 0, 2000))
    answer.take(Progress(0, Phase.PREFILL, 0.0, 0, 1500), now=1.0)
    answer.take(Progress(0, Phase.PREFILL, 0.5, 0, 700), now=1.5)  # this can wait for a heartbeat
    answer.take(tokens(0, b"a"), now=2.0)
    alive = Alive(Phase.PREFILL, 0.0, 0, 1500)
    assert await read(answer, 3) == [QUEUED, alive, tokens(0, b"a")]


async def test_requeued_by_the_worker_is_said_once() -> None:
    answer = answer_to(submit(), QUEUED, Progress(0, Phase.REQUEUED, 0.0, 0))
    assert (await read(answer, 2))[1].phase is Phase.REQUEUED  # type: ignore[union-attr]
    assert answer.alive(now=1.0).phase is Phase.QUEUED


def test_it_is_proven_by_time_after_its_first_token_here() -> None:
    answer = answer_to(submit(), QUEUED)
    assert not answer.is_proven(100.0)
    answer.take(tokens(0, b"a"), now=1.0)
    assert not answer.is_proven(1.0)
    assert answer.is_proven(1.01 + defaults.PROBATION_S)
    answer.requeue(2.0)
    assert not answer.is_proven(100.0)


# ---------------------------------------------------------------- several workers


async def test_the_next_worker_goes_on_where_the_last_one_died() -> None:
    asked = submit(n=2)
    answer = answer_to(asked, QUEUED, tokens(0, b"a", b"b", choice=1))
    resumed = died(answer)
    assert resumed == replace(asked, resume=((0, ()), (1, (10, 11))), prompt_digest=DIGEST)

    for message in (QUEUED, tokens(2, b"c", choice=1), tokens(0, b"d")):
        assert not answer.take(message, now=11.0)
    assert answer.take(done((0, 7), (1, b"c"), n_completion=2), now=12.0)
    mails = await read(answer, 6)
    assert mails[0] == QUEUED
    assert mails[2] == Alive(Phase.REQUEUED, 0.0, 1)
    assert sum(isinstance(mail, Queued) for mail in mails) == 1
    # Usage once: what the first worker found in its cache; all that was delivered; the lost time.
    end = replace(done((0, 7), (1, b"c"), n_completion=4), n_cached=2, decode_ms=3 + 10_000)
    assert mails[-1] == end


async def test_what_had_not_begun_is_asked_as_it_was_and_waited_longer() -> None:
    asked = submit(n=2)
    answer = answer_to(asked, QUEUED)
    assert died(answer) == asked
    for message in (QUEUED, tokens(0, b"a")):
        answer.take(message, now=11.0)
    answer.take(done((0, "length"), n_completion=1), now=12.0)
    end = (await read(answer, 4))[-1]
    assert isinstance(end, Done)
    assert (end.queue_ms, end.decode_ms) == (1 + 10_000, 3)


async def test_what_was_not_accepted_yet_is_accepted_once_by_the_next() -> None:
    answer = answer_to(submit())
    assert died(answer) == submit()
    answer.take(QUEUED, now=11.0)
    assert await read(answer, 1) == [QUEUED]


@pytest.mark.parametrize(
    ("asked", "delivered", "end"),
    [
        (submit(), (tokens(0, b"a", b"b", b"c", b"d"),), "length"),
        (submit(stop=(b"zz", b"bc")), (tokens(0, b"ab"), tokens(1, b"c!")), b"bc"),
        (submit(stop=(b"c", b"bc")), (tokens(0, b"abc"),), b"bc"),
        (submit(resume=((0, (8, 9)),)), (tokens(2, b"c", b"d"),), "length"),
    ],
    ids=["length", "stop over two tokens", "the stop that begins first", "resumed"],
)
async def test_all_delivered_but_its_end(
    asked: Submit, delivered: tuple[NewTokens, ...], end: str | bytes
) -> None:
    answer = answer_to(asked, QUEUED, *delivered)
    assert died(answer) is None
    answer.finish(11.0, 100.0, 50.0)
    last = (await read(answer, 3 + len(delivered)))[-1]
    assert isinstance(last, Done)
    assert last.ends == ((0, end),)
    n_delivered = sum(len(message.ids) for message in delivered)
    assert (last.n_prompt, last.n_cached, last.n_completion) == (5, 2, n_delivered)


async def test_choices_that_had_ended_are_not_asked_again() -> None:
    asked = submit(n=3, stop=(b"!",))
    answer = answer_to(
        asked,
        QUEUED,
        tokens(0, b"a", b"b", b"c", b"d"),
        tokens(0, b"e!", choice=1),
        tokens(0, b"f", choice=2),
    )
    resumed = died(answer)
    assert isinstance(resumed, Submit)
    assert resumed.resume == ((2, (10,)),)
    with pytest.raises(BadFrame):
        answer.take(tokens(1, b"x", choice=1), now=11.0)
    answer.take(done((2, 7)), now=12.0)
    last = (await read(answer, 6))[-1]
    assert isinstance(last, Done)
    assert last.ends == ((0, "length"), (1, b"!"), (2, 7))
    assert last.n_completion == 6


def test_a_second_death_resumes_from_both_workers() -> None:
    answer = answer_to(submit(), QUEUED, tokens(0, b"a"))
    died(answer)
    answer.take(tokens(1, b"b"), now=11.0)
    again = died(answer)
    assert isinstance(again, Submit)
    assert again.resume == ((0, (10, 11)),)
    assert answer.n_resumes == 2


def test_it_waits_since_the_last_death() -> None:
    answer = answer_to(submit(), QUEUED)
    answer.requeue(5.0)
    answer.requeue(7.0)
    assert answer.requeued_at == 7.0
    answer.again(8.0)
    assert answer.requeued_at is None


async def test_parts_that_a_new_worker_says_again_are_left_out() -> None:
    answer = answer_to(EMBED, Embedded(0, 0, (b"v0", b"v1"), (1, 2), False))
    assert died(answer) == EMBED
    assert not answer.take(Embedded(0, 0, (b"v0",), (1,), False), now=11.0)
    assert answer.take(Embedded(0, 1, (b"v1", b"v2"), (2, 3), True), now=11.0)
    assert (await read(answer, 2))[1] == Embedded(0, 2, (b"v2",), (3,), True)

    answer = answer_to(SCORE, Scored(0, 0, ((0.1,) * 4,), (5,), 9, False))  # type: ignore[arg-type]
    assert died(answer) == SCORE
    again = Scored(0, 0, ((0.1,) * 4, (0.2,) * 4), (5, 6), 9, True)  # type: ignore[arg-type]
    assert answer.take(again, now=11.0)
    assert (await read(answer, 2))[1] == replace(
        again, index=1, scores=again.scores[1:], drawn=again.drawn[1:]
    )


async def test_a_count_is_asked_again_and_says_nothing_in_between() -> None:
    count = Count(0, (("a", False),))
    answer = answer_to(count)
    assert died(answer) == count
    assert answer.take(Counted(0, 3), now=11.0)
    assert await read(answer, 1) == [Counted(0, 3)]
