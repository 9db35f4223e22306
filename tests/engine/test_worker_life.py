"""The worker process dies, hangs, or never comes up; and it never stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.conftest import ROOT
from tests.engine.parts import BOB, RunningEngine, ask, chat, raw, submit, text_of, tiny_spec, until
from tokenplace import defaults
from tokenplace.engine import launch
from tokenplace.engine.engine import Engine, EngineSpec, open_engine
from tokenplace.engine.frames import BadFrame
from tokenplace.engine.messages import NewTokens, Progress, Queued, Refused
from tokenplace.engine.quarantine import Quarantine
from tokenplace.engine.supervisor import Answer
from tokenplace.errors import ConfigError, Quarantined, Unsupported, WorkerCrashed
from tokenplace.generation import Accepted, Alive, GenerateRequest, Phase, Tokens


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart may take long on a busy machine, and that is not what is tested."""
    monkeypatch.setattr(defaults, "RESTART_WAIT_S", 60.0)


HELLO = chat("Say hello.", max_tokens=4)


async def fails_to_open(spec: EngineSpec) -> str:
    with trio.fail_after(30), pytest.raises(ConfigError) as caught:
        await open_and_close(spec)
    return caught.value.detail


async def open_and_close(spec: EngineSpec) -> None:
    async with open_engine(spec):
        pass


async def kill_at(
    event_type: type[Accepted | Tokens], engine: Engine, request: GenerateRequest, number: int
) -> None:
    """Ask, and send the worker a signal at the first event of this type."""
    async with engine.generate(request) as events:
        async for event in events:
            if isinstance(event, event_type):
                os.kill(engine.worker_pid, number)


async def kill_in_mid_answer(
    engine: Engine, request: GenerateRequest, number: int = signal.SIGKILL
) -> None:
    with pytest.raises(WorkerCrashed):
        await kill_at(Tokens, engine, request, number)


# ---------------------------------------------------------------- files that are no model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda _: os.urandom(1 << 16), "not a GGUF"),
        (lambda _: b"", "not a GGUF"),
        (lambda _: b"GGUF" + bytes(range(256)) * 256, ""),
        (lambda model: model[:1_000_000], ""),
        (lambda model: model[:50_000_000], "corrupted or incomplete"),
    ],
    ids=["random", "empty", "random with magic", "cut in its header", "cut"],
)
def test_a_file_that_is_no_model(
    tmp_path: Path, tiny_model: Path, make: Callable[[bytes], bytes], reason: str
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(make(tiny_model.read_bytes()))
    detail = trio.run(fails_to_open, tiny_spec(path))
    assert detail.startswith(f"{path}: ")
    assert reason in detail


async def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in await fails_to_open(tiny_spec(tmp_path / "missing.gguf"))
    assert "Is a directory" in await fails_to_open(tiny_spec(tmp_path))


async def test_settings_that_cannot_be(tiny_model: Path) -> None:
    spec = tiny_spec(tiny_model)
    assert "0 threads" in await fails_to_open(replace(spec, n_threads=0))
    assert "too small" in await fails_to_open(replace(spec, n_ctx=16))


@pytest.mark.parametrize(
    ("module", "how"), [("this", "exit status 0"), ("nowhere", "exit status 1")]
)
async def test_a_worker_that_dies_while_loading(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, module: str, how: str
) -> None:
    monkeypatch.setattr(launch, "_MODULE", module)
    assert f"ended the process ({how})" in await fails_to_open(tiny_spec(tiny_model))


async def test_a_load_that_never_ends(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "LOAD_TIMEOUT_S", 0.01)
    assert "not loaded after 0.01 s" in await fails_to_open(tiny_spec(tiny_model))


# ---------------------------------------------------------------- files with another template


def with_other_bytes(model: Path, folder: Path, old: bytes, new: bytes) -> EngineSpec:
    """The model with one place changed; as long as before, so that nothing else moves."""
    assert len(old) == len(new)
    path = folder / "changed.gguf"
    path.write_bytes(model.read_bytes().replace(old, new, 1))
    return tiny_spec(path)


@pytest.mark.slow
async def test_a_model_without_template_continues_raw_prompts_only(
    tiny_model: Path, tmp_path: Path
) -> None:
    spec = with_other_bytes(tiny_model, tmp_path, b"tokenizer.chat_templ", b"tokenizer.flat_templ")
    async with open_engine(spec) as engine:
        assert (engine.info.template, engine.info.features) == ("", ())
        with pytest.raises(Unsupported, match="chat"):
            await ask(engine, chat())
        assert "six" in text_of(await ask(engine, raw("One, two, three, four, five,")))


async def test_a_template_that_does_not_compile(tiny_model: Path, tmp_path: Path) -> None:
    spec = with_other_bytes(tiny_model, tmp_path, b"{% for message in", b"{% fog message in")
    detail = await fails_to_open(spec)
    assert detail.startswith(f"{spec.path}: its chat template does not compile")


# ---------------------------------------------------------------- a worker that goes astray


def accepted_answer() -> Answer:
    answer = Answer(0, b"")
    answer.take(Queued(0, b"", 1, 0, 64, 2, 0, 0))
    return answer


@pytest.mark.parametrize(
    "nonsense",
    [
        NewTokens(0, 1, (5,), (b"x",)),
        NewTokens(0, 0, (5, 6, 7), (b"x", b"y", b"z")),
        NewTokens(0, 0, (5, 6), (b"x",)),
        NewTokens(0, 0, (5,), ("x",)),  # type: ignore[arg-type]
        Refused(0, "no such code", ""),
    ],
    ids=["gap", "more than asked for", "no bytes", "text for bytes", "unknown code"],
)
def test_nonsense_is_not_passed_on(nonsense: NewTokens | Refused) -> None:
    with pytest.raises(BadFrame):
        accepted_answer().take(nonsense)


def test_a_phase_that_does_not_exist_is_not_passed_on() -> None:
    with pytest.raises(ValueError, match="dreaming"):
        accepted_answer().take(Progress(0, "dreaming", 0.0, 0))


def test_progress_in_the_answer_is_the_share_of_its_longest() -> None:
    answer = accepted_answer()
    answer.take(NewTokens(0, 0, (5,), (b"x",)))
    answer.take(Progress(0, Phase.DECODE, 0.0, 0))
    assert answer.alive() == Alive(Phase.DECODE, 0.5, 0)


# ---------------------------------------------------------------- death and restart


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[RunningEngine]:
    with RunningEngine(tiny_spec(tiny_model)) as running:
        yield running


def story(name: str) -> GenerateRequest:
    """Long enough to be killed in the middle. Each test has its own, because of the quarantine."""
    return chat(f"Tell a story of {name}.", max_tokens=500, ignore_eog=True)


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
def test_a_killed_worker_fails_its_answers_and_is_replaced(tiny: RunningEngine) -> None:
    async def scenario(engine: Engine) -> None:
        evil = story("a wolf")
        hello = text_of(await ask(engine, HELLO))
        pid, n_restarts = engine.worker_pid, engine.load.restarts
        await kill_in_mid_answer(engine, evil)
        assert engine.load.state == "restarting"
        assert text_of(await ask(engine, HELLO)) == hello
        assert engine.worker_pid != pid
        assert (engine.load.state, engine.load.restarts) == ("ready", n_restarts + 1)

        # What crashed it twice is not tried again, whatever its seed; all else is.
        await kill_in_mid_answer(engine, evil)
        with pytest.raises(Quarantined):
            await ask(engine, replace(evil, seed=b"2" * 8, cache_scope=BOB))
        assert text_of(await ask(engine, HELLO)) == hello

    tiny.run(scenario)


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
def test_who_was_only_waiting_is_not_to_blame(tiny: RunningEngine) -> None:
    async def crash(engine: Engine, request: GenerateRequest, is_running: trio.Event) -> None:
        with pytest.raises(WorkerCrashed):
            await read(engine, request, is_running)

    async def read(engine: Engine, request: GenerateRequest, is_running: trio.Event) -> None:
        async with engine.generate(request) as events:
            async for _ in events:
                is_running.set()

    async def scenario(engine: Engine) -> None:
        for n in range(defaults.CRASHES_TO_QUARANTINE):
            async with trio.open_nursery() as nursery:
                is_running = trio.Event()
                # Another one each time: only the one that waits is there at every crash.
                nursery.start_soon(crash, engine, story(f"{n} sheep"), is_running)
                await is_running.wait()
                with pytest.raises(WorkerCrashed):
                    await kill_at(Accepted, engine, HELLO, signal.SIGKILL)
        assert text_of(await ask(engine, HELLO))

    tiny.run(scenario)


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
async def test_a_worker_that_stands_still_is_replaced(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "WORKER_STALL_S", 1.0)
    async with open_engine(tiny_spec(tiny_model)) as engine:
        await kill_in_mid_answer(engine, story("a stone"), signal.SIGSTOP)
        monkeypatch.setattr(defaults, "WORKER_STALL_S", 60.0)
        assert text_of(await ask(engine, HELLO))


@pytest.mark.slow
async def test_a_file_that_was_replaced_is_not_loaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artifact's hash was of the other file."""
    monkeypatch.setattr(defaults, "RESTART_WAIT_S", 0.5)
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    path = tmp_path / "model.gguf"
    path.symlink_to(tiny_model)
    async with open_engine(tiny_spec(path)) as engine:
        other.rename(path)
        await kill_in_mid_answer(engine, story("a fox"))
        with pytest.raises(WorkerCrashed):
            await ask(engine, chat())
        assert engine.load.state == "restarting"


# ---------------------------------------------------------------- as a program


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def command(path: Path, prompt: str) -> list[str]:
    return [sys.executable, "-m", "tokenplace.engine", str(path), "--prompt", prompt]


@pytest.mark.slow
def test_no_process_outlives_its_parent(tiny_model: Path) -> None:
    with subprocess.Popen(
        command(tiny_model, "Count to 9999."),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.read(1)  # it is answering
            children = children_of(parent.pid)
            assert len(children) == 2  # worker and renderer
        finally:
            parent.kill()
    trio.run(until, lambda: not any(map(is_running, children)))


@pytest.mark.slow
def test_the_command_line_answers_and_fails_in_one_line(tiny_model: Path, tmp_path: Path) -> None:
    def run(path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(path, "Say hello."), cwd=ROOT, capture_output=True, text=True, timeout=60
        )

    answered = run(tiny_model)
    assert answered.returncode == 0
    assert "hello" in answered.stdout.lower()
    failed = run(tmp_path / "missing.gguf")
    assert failed.returncode == 1
    assert len(failed.stderr.splitlines()) == 1


# ---------------------------------------------------------------- quarantine, by itself


def test_a_request_is_quarantined_by_what_it_asks() -> None:
    quarantine = Quarantine()
    evil = quarantine.digest(submit(1, "evil"))
    assert quarantine.digest(submit(2, "evil", scope=BOB)) == evil
    assert quarantine.digest(submit(1, "evil", max_tokens=9)) != evil
    assert Quarantine().digest(submit(1, "evil")) != evil  # keyed: it tells others nothing
    for _ in range(defaults.CRASHES_TO_QUARANTINE):
        assert not quarantine.has(evil)
        quarantine.note_crash(evil)
    assert quarantine.has(evil)


def test_the_quarantine_forgets_the_oldest() -> None:
    quarantine = Quarantine()
    first = quarantine.digest(submit(0, "evil"))
    for _ in range(defaults.CRASHES_TO_QUARANTINE):
        quarantine.note_crash(first)
    for n in range(defaults.MAX_CRASHES_REMEMBERED):
        quarantine.note_crash(quarantine.digest(submit(0, f"other {n}")))
    assert not quarantine.has(first)
