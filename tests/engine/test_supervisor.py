"""One worker dies, the next one goes on: every request but the one that kills finishes, as if
nothing had been. Over the real worker loop, with a model of arithmetic (`frail_worker.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from tests.conftest import ROOT
from tests.engine import frail_worker
from tests.engine.parts import BOB, alone, submit
from tokenplace import defaults
from tokenplace.engine import launch
from tokenplace.engine.launch import EngineSpec
from tokenplace.engine.mailbox import Request
from tokenplace.engine.messages import (
    Count,
    Counted,
    Done,
    NewTokens,
    Queued,
    Refused,
    Score,
    Scored,
    Submit,
)
from tokenplace.engine.supervisor import Answer, Mail, Supervisor
from tokenplace.errors import (
    DonorFinishing,
    ErrorCode,
    Quarantined,
    TokenplaceError,
    WorkerCrashed,
)
from tokenplace.generation import Alive, Phase


@dataclass
class Frail:
    """A folder and a file that pass for a model; see `frail_worker.FOLDER`."""

    folder: Path

    @property
    def spec(self) -> EngineSpec:
        return EngineSpec(self.folder / "model.gguf", "arithmetic", "", n_threads=1)

    def wait_for(self, n: int) -> None:
        (self.folder / frail_worker.WAIT_FOR).write_text(str(n))

    def let_die_once(self) -> None:
        (self.folder / frail_worker.ONCE).write_text("yes")


@pytest.fixture
def frail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Frail:
    """Workers of this test are frail, and restarts wait for as long as a busy machine needs."""
    monkeypatch.setattr(launch, "_MODULE", frail_worker.__name__)
    monkeypatch.setattr(defaults, "RESTART_WAIT_S", 60.0)
    monkeypatch.setattr(defaults, "RESTART_DELAY_S", 0.01)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(frail_worker.FOLDER, str(tmp_path))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    return Frail(tmp_path)


@asynccontextmanager
async def supervised(frail: Frail) -> AsyncIterator[Supervisor]:
    supervisor = await Supervisor.start(frail.spec)
    try:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(supervisor.run)
                yield supervisor
                nursery.cancel_scope.cancel()
    finally:
        await supervisor.aclose()


async def read(supervisor: Supervisor, asked: Request) -> list[Mail]:
    """All mail of one request, the last of it included."""
    (mails,) = await together(supervisor, [asked])
    return mails


async def together(supervisor: Supervisor, asked: Sequence[Request]) -> list[list[Mail]]:
    """The mail of requests that are submitted in this order, and then run at the same time."""
    answers = [await supervisor.submit(one) for one in asked]
    try:
        return [[mail async for mail in mails_of(answer)] for answer in answers]
    finally:
        for answer in answers:
            supervisor.forget(answer)


async def mails_of(answer: Answer) -> AsyncIterator[Mail]:
    while True:
        mail = await answer.receive()
        yield mail
        if isinstance(mail, Done | Refused | Counted | TokenplaceError):
            return
        if isinstance(mail, Scored) and mail.is_last:
            return


def story(prompt: str, n: int = 1, max_tokens: int = 40) -> Submit:
    return submit(prompt=prompt, n=n, max_tokens=max_tokens, temperature=0.8, ignore_eog=True)


def is_requeued(mail: Mail) -> bool:
    return isinstance(mail, Alive) and mail.phase is Phase.REQUEUED


def n_requeued(mails: list[Mail]) -> int:
    return sum(map(is_requeued, mails))


async def requeued(answer: Answer) -> None:
    """Take its mail until its worker has died."""
    while not is_requeued(await answer.receive()):
        pass


def assert_whole(mails: list[Mail], asked: Submit) -> Done:
    """Accepted once, every token once and in order, and the right ones; usage of the whole."""
    first, last = mails[0], mails[-1]
    assert isinstance(first, Queued)
    assert isinstance(last, Done)
    assert sum(isinstance(mail, Queued) for mail in mails) == 1
    ids: dict[int, list[int]] = {choice: [] for choice in range(asked.n)}
    for mail in mails:
        if isinstance(mail, NewTokens):
            assert mail.index == len(ids[mail.choice])
            ids[mail.choice] += mail.ids
    expected = [alone(asked, choice, frail_worker.N_CTX) for choice in range(asked.n)]
    assert [ids[choice] for choice in range(asked.n)] == [tokens for tokens, _ in expected]
    assert last.ends == tuple((choice, end) for choice, (_, end) in enumerate(expected))
    assert last.n_completion == sum(map(len, ids.values()))
    assert (last.n_prompt, last.n_cached) == (first.n_prompt, first.n_cached)
    return last


def assert_crashed(mails: list[Mail]) -> None:
    assert isinstance(mails[-1], WorkerCrashed)


INNOCENTS = [story("a wolf"), story("two sheep", n=2), story("three goats", max_tokens=60)]


# ---------------------------------------------------------------- who is innocent finishes


async def test_nobody_notices_more_than_a_delay_when_a_worker_is_killed(frail: Frail) -> None:
    """From outside: the request in whose step it happened may have been any."""
    frail.wait_for(4)
    frail.let_die_once()
    killed = story("killed once at 5: a fox")
    async with supervised(frail) as supervisor:
        asked = [*INNOCENTS, killed]
        for mails, one in zip(await together(supervisor, asked), asked, strict=True):
            assert_whole(mails, one)
            assert n_requeued(mails) == 1
        assert supervisor.load.restarts == 1
        assert (supervisor.load.n_running, supervisor.load.n_queued) == (0, 0)
        assert_whole(await read(supervisor, killed), killed)  # and nobody is quarantined


@pytest.mark.parametrize("how", ["abort at 3", "killed at 3", "exit at 0"])
async def test_who_kills_among_others_costs_two_workers_and_nobody_else_anything(
    frail: Frail, how: str
) -> None:
    frail.wait_for(4)
    evil = story(f"{how}: poison")
    async with supervised(frail) as supervisor:
        *innocent, guilty = await together(supervisor, [*INNOCENTS, evil])
        for mails, one in zip(innocent, INNOCENTS, strict=True):
            assert_whole(mails, one)
            assert n_requeued(mails) == 2
        assert_crashed(guilty)
        assert supervisor.load.restarts == 2
        # It is not tried again, whoever asks; everybody else is.
        with pytest.raises(Quarantined):
            await read(supervisor, replace(evil, seed=b"2" * 8, cache_scope=BOB, bucket="bob"))
        assert_whole(await read(supervisor, INNOCENTS[0]), INNOCENTS[0])


async def test_who_kills_before_any_step_costs_one_worker(frail: Frail) -> None:
    frail.wait_for(4)
    async with supervised(frail) as supervisor:
        evil = story("abort at tokenise: poison")
        *innocent, guilty = await together(supervisor, [*INNOCENTS, evil])
        for mails, one in zip(innocent, INNOCENTS, strict=True):
            assert_whole(mails, one)
        assert_crashed(guilty)
        assert supervisor.load.restarts == 1


async def test_the_oldest_can_be_the_guilty_one(frail: Frail) -> None:
    """Then it is tried last, behind those who pass their trial."""
    frail.wait_for(4)
    async with supervised(frail) as supervisor:
        guilty, *innocent = await together(supervisor, [story("abort at 2: poison"), *INNOCENTS])
        for mails, one in zip(innocent, INNOCENTS, strict=True):
            assert_whole(mails, one)
        assert_crashed(guilty)
        assert supervisor.load.restarts <= 2


async def test_two_that_kill_are_found_one_after_the_other(frail: Frail) -> None:
    frail.wait_for(5)
    evils = [story("abort at 3: poison"), story("exit at 4: venom")]
    async with supervised(frail) as supervisor:
        *innocent, first, second = await together(supervisor, [*INNOCENTS, *evils])
        for mails, one in zip(innocent, INNOCENTS, strict=True):
            assert_whole(mails, one)
        assert_crashed(first)
        assert_crashed(second)
        assert supervisor.load.restarts <= 4


# ---------------------------------------------------------------- alone in its step


async def test_who_aborts_a_worker_alone_is_guilty_at_once(frail: Frail) -> None:
    evil = story("abort at 3: poison")
    async with supervised(frail) as supervisor:
        assert_crashed(await read(supervisor, evil))
        with pytest.raises(Quarantined):
            await read(supervisor, evil)
        assert supervisor.load.restarts <= 1


async def test_who_was_alone_when_somebody_killed_the_worker_goes_on(frail: Frail) -> None:
    frail.let_die_once()
    asked = story("killed once at 3: a fox", n=3)
    async with supervised(frail) as supervisor:
        mails = await read(supervisor, asked)
        done = assert_whole(mails, asked)
        assert n_requeued(mails) == 1
        assert done.decode_ms > 0
        assert supervisor.load.confinement == ("network",)
        assert supervisor.load.n_slots == frail_worker.N_SLOTS


async def test_the_second_time_it_is_no_chance(frail: Frail) -> None:
    evil = story("killed at 3: a fox")
    async with supervised(frail) as supervisor:
        mails = await read(supervisor, evil)
        assert_crashed(mails)
        assert n_requeued(mails) == 1
        with pytest.raises(Quarantined):
            await read(supervisor, evil)


async def test_a_worker_that_stands_still_is_replaced(
    frail: Frail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "WORKER_STALL_S", 2.0)
    async with supervised(frail) as supervisor:
        assert_crashed(await read(supervisor, story("stops at 3: a stone")))
        monkeypatch.setattr(defaults, "WORKER_STALL_S", 60.0)
        assert_whole(await read(supervisor, INNOCENTS[0]), INNOCENTS[0])


# ---------------------------------------------------------------- what else can be in flight


async def test_an_answer_that_another_donor_began_is_resumed_again(frail: Frail) -> None:
    frail.let_die_once()
    whole = story("killed once at 9: a fox", n=2)
    async with supervised(frail) as supervisor:
        (queued, *_) = await read(supervisor, replace(whole, max_tokens=1))
        assert isinstance(queued, Queued)
        ids = [alone(whole, choice, frail_worker.N_CTX)[0] for choice in range(2)]
        resume = ((0, tuple(ids[0][:7])), (1, tuple(ids[1][:4])))
        asked = replace(whole, resume=resume, prompt_digest=queued.prompt_digest)
        mails = await read(supervisor, asked)
        done = mails[-1]
        assert isinstance(done, Done)
        assert done.n_completion == 2 * 40 - 7 - 4
        for choice, n_before in ((0, 7), (1, 4)):
            said = [m for m in mails if isinstance(m, NewTokens) and m.choice == choice]
            assert said[0].index == n_before
            assert [i for m in said for i in m.ids] == ids[choice][n_before:]


async def test_scores_and_counts_are_asked_again(frail: Frail) -> None:
    frail.let_die_once()
    frail.wait_for(2)
    prompt = (("a prompt", False),)
    ids = tuple(2 + place % 60 for place in range(3 * defaults.SCORE_ROWS))
    score = Score(0, "bob", prompt, ids, BOB, (), b"", 0)
    killed = story("killed once at 1: a fox")
    async with supervised(frail) as supervisor:
        scored, mails = await together(supervisor, [score, killed])
        assert_whole(mails, killed)
        parts = [mail for mail in scored if isinstance(mail, Scored)]
        assert [part.index for part in parts] == [
            sum(len(p.scores) for p in parts[:i]) for i in range(len(parts))
        ]
        assert sum(len(part.scores) for part in parts) == len(ids)
        assert supervisor.load.restarts == 1

        frail.let_die_once()
        counted = await read(supervisor, Count(0, (("killed once at tokenise: x", False),)))
        assert isinstance(counted[-1], Counted)
        assert supervisor.load.restarts == 2


async def test_leaving_during_a_trial_lets_the_others_go_on(frail: Frail) -> None:
    frail.wait_for(3)
    async with supervised(frail) as supervisor:
        answers = [await supervisor.submit(one) for one in INNOCENTS[:2]]
        evil = await supervisor.submit(story("abort at 3: poison"))
        await requeued(evil)
        supervisor.forget(evil)
        for answer, one in zip(answers, INNOCENTS, strict=False):
            assert_whole([mail async for mail in mails_of(answer)], one)
        assert supervisor.load.restarts == 1


# ---------------------------------------------------------------- bounds


async def starve(frail: Frail) -> None:
    """The worker that comes next will not: the file is no longer what it was."""
    (frail.folder / "model.gguf").write_bytes(b"GGUF, but longer")


async def test_nobody_waits_for_ever_for_a_worker_that_does_not_come(
    frail: Frail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "RESUME_WAIT_S", 0.2)
    monkeypatch.setattr(defaults, "RESTART_WAIT_S", 0.2)
    async with supervised(frail) as supervisor:
        await starve(frail)
        mails = await read(supervisor, story("killed at 3: a fox"))
        assert_crashed(mails)
        assert n_requeued(mails) == 1
        assert supervisor.load.state == "restarting"
        with pytest.raises(WorkerCrashed):
            await supervisor.submit(INNOCENTS[0])


async def test_an_answer_is_resumed_so_often_and_no_more(
    frail: Frail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "MAX_RESUMES", 1)
    frail.wait_for(2)
    async with supervised(frail) as supervisor:
        asked = [story("a wolf"), story("abort at 3: poison")]
        for mails in await together(supervisor, asked):
            assert_crashed(mails)
            assert n_requeued(mails) == 1
        assert_whole(await read(supervisor, asked[0]), asked[0])  # it is not to blame


async def test_newcomers_wait_until_nobody_is_suspected(
    frail: Frail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever came into a step with a suspect could not be told from it."""
    monkeypatch.setattr(defaults, "PROBATION_S", 1000.0)
    frail.wait_for(2)
    frail.let_die_once()
    asked = [story("killed once at 3: a fox"), story("a wolf")]
    newcomer = story("a hare")
    async with supervised(frail) as supervisor:
        suspects = [await supervisor.submit(one) for one in asked]
        await requeued(suspects[0])
        assert supervisor.load.state == "restarting"
        answer = await supervisor.submit(newcomer)
        load = supervisor.load
        assert load.n_running + load.n_queued == 1, "both trials are over"
        assert_whole([mail async for mail in mails_of(answer)], newcomer)


async def test_closing_ends_those_that_wait_for_a_worker(frail: Frail) -> None:
    async with supervised(frail) as supervisor:
        await starve(frail)
        answer = await supervisor.submit(story("killed at 3: a fox"))
        await requeued(answer)
    assert isinstance(await answer.receive(), DonorFinishing)


async def test_what_the_new_worker_cannot_resume_is_a_crash_to_the_requester(frail: Frail) -> None:
    """Not an odd refusal of something that it never asked for."""
    async with supervised(frail) as supervisor:
        answer = await supervisor.submit(story("a fox", max_tokens=2))
        answer.requeue(0.0)
        answer.take(Refused(answer.request, ErrorCode.PROMPT_MISMATCH, ""), 0.0)
        mail = await answer.receive()
        assert isinstance(mail, Refused)
        assert mail.code == ErrorCode.WORKER_CRASHED
