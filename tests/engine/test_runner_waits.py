"""What those who wait are told, and for whom a step is stopped."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.engine.parts import ALICE, BOB, ArithmeticModel, enter, run, runner_of, submit
from tokenplace import defaults
from tokenplace.engine.confine import ParentPipe
from tokenplace.engine.frames import encode_frame
from tokenplace.engine.messages import Cancel, Progress, to_value
from tokenplace.engine.runner import Runner
from tokenplace.engine.worker import _Mail
from tokenplace.generation import Phase

LONG = "x" * 40


def with_known_pace(model: ArithmeticModel) -> Runner:
    runner = runner_of(model)
    for request in range(100, 103):
        enter(runner, submit(request, "warm up", max_tokens=8, ignore_eog=True))
        run(runner)
    return runner


def told(runner: Runner, request: int) -> list[Progress]:
    """What one step says of it."""
    return [e for e in runner.step() if isinstance(e, Progress) and e.request == request]


# ---------------------------------------------------------------- waits


def test_a_seat_without_room_in_the_cache_is_waited_for() -> None:
    runner = with_known_pace(ArithmeticModel(n_ctx=64, n_slots=8, n_running=4, n_cells=64))
    enter(runner, submit(0, "hello", max_tokens=50, ignore_eog=True))
    runner.step()
    told_ms = enter(runner, submit(1, "world", bucket="bob", scope=BOB, max_tokens=40)).wait_ms
    n_steps = 0
    while 1 not in runner.running:
        runner.step()
        n_steps += 1
    assert told_ms == pytest.approx(1000 * runner.pace.seconds_for_decode(n_steps), rel=0.2)


def test_who_has_to_wait_again_is_told_of_it_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "ETA_RENEW_S", 0.02)  # some steps of this clock
    monkeypatch.setattr(defaults, "EXPECTED_NEW_TOKENS", 4)
    runner = with_known_pace(ArithmeticModel(n_ctx=64, n_slots=2, n_cells=64))
    for request, bucket, scope in ((0, "alice", ALICE), (1, "bob", BOB)):
        asked = submit(request, bucket=bucket, scope=scope, max_tokens=None, ignore_eog=True)
        enter(runner, asked)
    while Phase.REQUEUED not in (event.phase for event in told(runner, 1)):
        assert not runner.is_idle, "nobody had to wait again"
    etas: list[int] = []
    while 1 not in runner.running:
        queued = [e for e in told(runner, 1) if e.phase == Phase.QUEUED]
        assert all(event.position == 0 for event in queued)
        etas += [event.eta_ms for event in queued]
    assert len(etas) > 2
    assert etas == sorted(etas, reverse=True)
    assert etas[0] > etas[-1] > 0


def test_choices_that_have_their_turn_later_are_no_news() -> None:
    runner = with_known_pace(ArithmeticModel(n_slots=1))
    enter(runner, submit(0, n=3, max_tokens=4, ignore_eog=True))
    enter(runner, submit(1, bucket="bob", scope=BOB, max_tokens=4, ignore_eog=True))
    phases = [e.phase for e in run(runner) if isinstance(e, Progress) and e.request == 0]
    assert Phase.DECODE in phases
    assert Phase.QUEUED not in phases[phases.index(Phase.PREFILL) :]


# ---------------------------------------------------------------- stopped steps


@pytest.fixture
def parent() -> Iterator[tuple[socket.socket, ParentPipe]]:
    """The parent's end of a worker's pipe, and the worker's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, ParentPipe(theirs)


def test_a_step_is_stopped_for_those_it_computes_alone(
    parent: tuple[socket.socket, ParentPipe],
) -> None:
    model = ArithmeticModel(n_slots=1)
    runner = runner_of(model)
    sock, pipe = parent
    mail = _Mail(pipe)
    enter(runner, submit(0, LONG))
    enter(runner, submit(1, LONG, bucket="mallory", scope=BOB))
    sock.sendall(encode_frame(to_value(Cancel(1))))
    runner.step(mail.has_cancel)
    assert len(model.slots[0]) == 41, "who only waits stops nothing"
    assert mail.take(waits=False) == [Cancel(1)]

    runner = runner_of(model := ArithmeticModel(n_slots=1))
    enter(runner, submit(0, LONG))
    sock.sendall(encode_frame(to_value(Cancel(0))))
    runner.step(mail.has_cancel)
    assert model.slots[0] == []
    assert mail.take(waits=False) == [Cancel(0)]
    sock.close()
    assert mail.has_cancel(frozenset()), "there is nobody left to work for"


def test_who_leaves_a_stopped_step_pays_for_its_part_of_it() -> None:
    """Bob has two requests that wait, and mallory asks again and again."""
    runner = runner_of(ArithmeticModel(n_slots=1))
    enter(runner, submit(0, LONG, bucket="mallory"))
    for request in (1, 2):
        enter(runner, submit(request, bucket="bob", scope=BOB))
    runner.step(lambda _: True)
    runner.cancel(0)
    enter(runner, submit(3, LONG, bucket="mallory"))
    [*_, last] = runner._waiting_requests()
    assert last == 3
