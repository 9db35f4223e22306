"""What is done to a network in the lab, and what its app sees of it. Start at `Told`, then `Bench`.

Tests do each of these once, `benchmarks.drills.network` many times.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any, Final

import trio

from benchmarks.drills.app import Question, chat
from benchmarks.lab.peers import REQUESTER, LabDonor, LabNetwork
from tokenplace.cli.processes import Status
from tokenplace.router.why import Rule

LINKS: Final[Mapping[str, Mapping[str, Any]]] = {
    "5 % loss, 80 ms": {"loss": 0.05, "delay_s": 0.08},
    "10 % duplicated and reordered": {"duplicate": 0.1, "reorder": 0.1, "delay_s": 0.01},
    "256 kbit/s": {"bits_per_s": 256_000, "delay_s": 0.02},
}
SLOTS: Final = 4
FLAGS: Final = ("--decode-tps", "50", "--prefill-tps", "1000", "--slots", str(SLOTS))
"""Of the donors: as slow as a small machine's, so that there is a middle to be disturbed in."""
WITH_TWIN: Final = "with a twin"
NO_TWIN: Final = "no twin"

N_TOKENS: Final = 200  # four seconds of text
N_FEW: Final = 20
BEGUN_PIECES: Final = 5
LONG_PROMPT_CHARS: Final = 4000  # a second of prefill
ASKED_WITHIN_S: Final = 120.0  # a donor that failed: its longest rests are for many failures
ASKED_EVERY_S: Final = 1.0
PHASE_WITHIN_S: Final = 3.0
UNDER_WAY_S: Final = 0.3  # what comes so soon after a cut had been sent before it


@dataclass
class Told:
    """One question, and what its app was told.

    what: phase and circumstances, for people. prompt, n_tokens: what its answer depends on alone.
    uncut: the same, asked undisturbed; None while it was not.
    """

    what: str
    prompt: str
    n_tokens: int
    question: Question
    uncut: Question | None = None

    async def wait_begun(self) -> None:
        """Return once its text is coming, or it has ended."""
        await self.question.wait(lambda: len(self.question.stream.moments) >= BEGUN_PIECES)

    @property
    def problem(self) -> str:
        """Why the answer is not the undisturbed one; empty if it is."""
        return self.question.problem or ("" if self.is_equal else "another answer than undisturbed")

    @property
    def is_equal(self) -> bool:
        """Did all come that came undisturbed, and nothing else?"""
        assert self.uncut is not None, "judged before"
        return self.question.essence == self.uncut.essence

    @property
    def is_corrupt(self) -> bool:
        """Did its app get wrong text, or too little of it as if that were all?"""
        assert self.uncut is not None, "judged before"
        stream = self.question.stream
        is_whole = self.question.is_answered
        return not self.uncut.stream.text.startswith(stream.text) or (
            bool(stream.faults) or (is_whole and not self.is_equal)
        )

    @property
    def line(self) -> str:
        """For a list of faults."""
        return f"{self.what}: {self.problem}"

    def went_on_s(self, cut_at: float) -> float:
        """How long after the cut its app saw something again: text, or the end."""
        times = [at for at, _ in self.question.stream.moments if at > cut_at + UNDER_WAY_S]
        assert self.question.ended_at is not None, "read to its end"
        return min([*times, self.question.ended_at]) - cut_at


class Bench:
    """A network on whose links and peers things are done."""

    def __init__(self, network: LabNetwork) -> None:
        self.network = network
        self._uncut: dict[tuple[str, int], Question] = {}

    def told(self, what: str, prompt: str, n_tokens: int = N_TOKENS, **wishes: Any) -> Told:
        """A question that is to be asked. wishes: of donors, as `provider` has them."""
        body = chat(self.network.model.called, prompt, n_tokens, provider=wishes)
        return Told(what, prompt, n_tokens, Question(body))

    async def read(self, told: Told) -> None:
        """Ask, and take what comes to its end."""
        await self.network.ask(told.question)

    async def read_all(self, all_told: Sequence[Told]) -> None:
        """Ask all these at once, and take what comes to its end."""
        async with trio.open_nursery() as nursery:
            for told in all_told:
                nursery.start_soon(self.read, told)

    @asynccontextmanager
    async def reading(self, all_told: Sequence[Told]) -> AsyncIterator[None]:
        """Ask all these; inside the block their text is coming. It ends when they have."""
        async with trio.open_nursery() as nursery:
            for told in all_told:
                nursery.start_soon(self.read, told)
            for told in all_told:
                await told.wait_begun()
            yield

    async def judge(self, all_told: Sequence[Told]) -> None:
        """Ask the same again, undisturbed, where the answer is not known yet."""
        asked = {(told.prompt, told.n_tokens) for told in all_told}
        again = [self.told("undisturbed", *key) for key in sorted(asked - self._uncut.keys())]
        await self.read_all(again)
        for told in again:
            assert told.question.is_answered, f"undisturbed: {told.question.problem}"
            self._uncut[told.prompt, told.n_tokens] = told.question
        for told in all_told:
            told.uncut = self._uncut[told.prompt, told.n_tokens]

    async def until_asked(self, donor: LabDonor) -> None:
        """Return once this donor answers again. One that failed rests for a while, and nobody but
        the requester knows how long. Raises `trio.TooSlowError`.
        """
        with trio.fail_after(ASKED_WITHIN_S):
            for number in count():
                told = self.told("again", f"again {number}", N_FEW, only=[donor.peer_id])
                await self.read(told)
                if told.question.is_answered:
                    return
                await trio.sleep(ASKED_EVERY_S)


# ---------------------------------------------------------------- links


async def through_links(bench: Bench, topics: Sequence[str], n_tokens: int) -> list[Told]:
    """Answers of one donor over each kind of `LINKS`, all kinds at the same time."""
    all_told = []
    for donor, (name, rule) in zip(bench.network.donors, LINKS.items(), strict=False):
        await bench.network.lab.link(REQUESTER, donor.host, **rule)
        all_told += [bench.told(name, topic, n_tokens, only=[donor.peer_id]) for topic in topics]
    await bench.read_all(all_told)
    await bench.network.lab.calm()
    await bench.judge(all_told)
    return all_told


async def through_a_flap(
    bench: Bench, donor: LabDonor, host: int, seconds: float, topics: Sequence[str]
) -> list[Told]:
    """Answers of this donor in whose middle a host, its own or another, is cut off for so long."""
    what = f"{seconds:g} s flap of host {host}"
    all_told = [bench.told(what, topic, order=[donor.peer_id]) for topic in topics]
    async with bench.reading(all_told):
        await bench.network.lab.flap(host, seconds)
    await bench.judge(all_told)
    return all_told


# ---------------------------------------------------------------- partitions


@dataclass(frozen=True, slots=True)
class Cut:
    """Answers in which something was cut off, and when."""

    at: float
    all_told: Sequence[Told]

    @property
    def went_on_s(self) -> list[float]:
        """Of each, how long after the cut its app saw something again."""
        return [told.went_on_s(self.at) for told in self.all_told]


async def through_a_partition(
    bench: Bench, victim: LabDonor, topics: Sequence[str], number: int, is_whole_host: bool
) -> Cut:
    """Cut off this donor while it streams two answers, computes two prompts and lets two wait: of
    each, one that may go on with a twin, and one that only this donor may write.

    number: of the round; no donor has seen its long prompts. is_whole_host: whether nobody reaches
    the donor any more, or only the requester does not.
    """
    lab = bench.network.lab
    long_prompts = [f"{twin} {number} ".ljust(LONG_PROMPT_CHARS, ".") for twin in ("twin", "none")]
    streamed = _pair(bench, "in stream", [topics[0]] * 2, N_TOKENS, victim)
    computed = _pair(bench, "in prefill", long_prompts, N_FEW, victim)
    queued = _pair(bench, "queued", [topics[1]] * 2, N_FEW, victim)
    others = set(range(lab.n_hosts)) - {victim.host} if is_whole_host else {REQUESTER}
    async with trio.open_nursery() as nursery:
        for told in streamed:
            nursery.start_soon(bench.read, told)
        for told in streamed:
            await told.wait_begun()
        for told in computed:
            nursery.start_soon(bench.read, told)
        await _wait_for_phase(victim, "n_running", SLOTS)
        for told in queued:
            nursery.start_soon(bench.read, told)
        await _wait_for_phase(victim, "n_queued", len(queued))
        await lab.partition({victim.host}, others)
        cut = Cut(trio.current_time(), [*streamed, *computed, *queued])
    await lab.partition({victim.host}, others, is_up=True)
    await bench.judge(cut.all_told)
    return cut


async def _wait_for_phase(donor: LabDonor, name: str, n_requests: int) -> None:
    """Return once so many are in it, or soon: on a busy machine one may be past it already."""
    with trio.move_on_after(PHASE_WITHIN_S):
        await donor.peer.wait(lambda status: status["models"][0][name] >= n_requests)


def _pair(
    bench: Bench, phase: str, prompts: Sequence[str], n_tokens: int, donor: LabDonor
) -> list[Told]:
    """Questions to this donor: one that others may go on with, one that they may not."""
    with_twin, without = prompts
    return [
        bench.told(f"{phase}, {WITH_TWIN}", with_twin, n_tokens, order=[donor.peer_id]),
        bench.told(f"{phase}, {NO_TWIN}", without, n_tokens, only=[donor.peer_id]),
    ]


# ---------------------------------------------------------------- the requester's own network


@dataclass(frozen=True, slots=True)
class Away:
    """What came of cutting the requester off.

    during: asked before and while it was away. back: asked when it was there again. rules: why each
    donor was chosen then.
    """

    during: Sequence[Told]
    back: Told
    rules: Sequence[str]

    @property
    def is_anybody_shunned(self) -> bool:
        """Was a donor asked then as one that answers badly?"""
        return bool({Rule.TRIAL, Rule.LEAST_BAD} & set(self.rules))


async def while_away(bench: Bench, seconds: float, topics: Sequence[str]) -> Away:
    """Cut the requester off for so long in the middle of answers, and while it is asked more."""
    lab = bench.network.lab
    streamed = [bench.told("in stream when it went", topic) for topic in topics]
    asked = bench.told("asked while away", topics[0], N_FEW)
    back = bench.told("asked when back", topics[1], N_FEW)
    async with bench.reading(streamed), trio.open_nursery() as nursery:
        await lab.isolate(REQUESTER)
        await trio.sleep(seconds / 2)
        nursery.start_soon(bench.read, asked)
        await trio.sleep(seconds / 2)
        await lab.isolate(REQUESTER, is_up=True)
        await bench.read(back)
        rules = _rules_of_the_latest(await bench.network.status())
    during = [*streamed, asked]
    await bench.judge([*during, back])
    return Away(during, back, rules)


def _rules_of_the_latest(status: Status) -> list[str]:
    latest = max(status["requests"], key=lambda request: float(request["at"]))
    return [attempt["why"]["rule"] for attempt in latest["attempts"] if attempt["why"]]


# ---------------------------------------------------------------- churn


async def churn(
    bench: Bench,
    topics: Sequence[str],
    n_tokens: int,
    *,
    seconds: float,
    every_s: float,
    dice: Random,
) -> tuple[list[Told], int]:
    """Ask for so long, one answer after the other about each topic, while every `every_s` a donor
    is killed or told to stop, and another one started on its host.

    All answers, and how many donors were replaced.
    """
    await bench.judge([bench.told("before", topic, n_tokens) for topic in topics])
    until = trio.current_time() + seconds
    all_told: list[Told] = []
    n_replaced = 0

    async def ask_on(topic: str) -> None:
        while trio.current_time() < until:
            told = bench.told("while donors come and go", topic, n_tokens)
            all_told.append(told)
            await bench.read(told)

    async with trio.open_nursery() as asking:
        for topic in topics:
            asking.start_soon(ask_on, topic)
        while trio.current_time() + every_s < until:
            await trio.sleep(every_s)
            n_replaced += 1
            await _replace_one(bench.network, dice, f"donor-again-{n_replaced}")
    await bench.judge(all_told)
    return all_told, n_replaced


async def _replace_one(network: LabNetwork, dice: Random, name: str) -> None:
    donor = dice.choice(network.donors)
    network.donors.remove(donor)
    donor.peer.process.send_signal(dice.choice([signal.SIGKILL, signal.SIGTERM]))
    await donor.peer.process.wait()
    await network.start_donor(donor.host, *FLAGS, name=name)
