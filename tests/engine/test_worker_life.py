"""The worker process dies, hangs, or never comes up; and it never stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.conftest import ROOT
from tests.engine.parts import BOB, ask, chat, raw, text_of, tiny_spec, until
from tokenplace import defaults
from tokenplace.engine import launch
from tokenplace.engine.engine import EngineSpec, open_engine
from tokenplace.errors import ConfigError, Unsupported
from tokenplace.generation import Accepted, Alive, Event, Finished, Phase, Tokens


async def fails_to_open(spec: EngineSpec) -> str:
    with trio.fail_after(30), pytest.raises(ConfigError) as caught:
        await open_and_close(spec)
    return caught.value.detail


async def open_and_close(spec: EngineSpec) -> None:
    async with open_engine(spec):
        pass


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
        assert engine.info.template == ""
        assert "chat" not in engine.info.features
        with pytest.raises(Unsupported, match="chat"):
            await ask(engine, chat())
        assert "six" in text_of(await ask(engine, raw("One, two, three, four, five,")))


async def test_a_template_that_does_not_compile(tiny_model: Path, tmp_path: Path) -> None:
    spec = with_other_bytes(tiny_model, tmp_path, b"{% for message in", b"{% fog message in")
    detail = await fails_to_open(spec)
    assert detail.startswith(f"{spec.path}: its chat template does not compile")


# ---------------------------------------------------------------- death and restart


@pytest.mark.slow
async def test_answers_go_on_in_the_next_worker(tiny_model: Path) -> None:
    """Two choices of one request, and another request: nobody misses or repeats a token."""
    story = replace(chat("Tell a story of a wolf.", max_tokens=60, ignore_eog=True), n=2)
    asked = [story, chat("Say hello.", max_tokens=40, ignore_eog=True, scope=BOB)]
    answers: list[list[Event]] = [[], []]
    async with open_engine(replace(tiny_spec(tiny_model), n_slots=3)) as engine:
        pid = engine.worker_pid

        async def read(place: int, is_answering: trio.Event) -> None:
            async with engine.generate(asked[place]) as events:
                async for event in events:
                    answers[place].append(event)
                    if isinstance(event, Tokens) and event.index > 4:
                        is_answering.set()

        async with trio.open_nursery() as nursery:
            is_answering = [trio.Event(), trio.Event()]
            for place, event in enumerate(is_answering):
                nursery.start_soon(read, place, event)
            for event in is_answering:
                await event.wait()
            os.kill(pid, signal.SIGKILL)
        assert engine.worker_pid != pid
        assert (engine.load.state, engine.load.restarts) == ("ready", 1)
    for request, events in zip(asked, answers, strict=True):
        assert_whole(events, request.n, request.max_tokens or 0)


def assert_whole(events: list[Event], n: int, n_tokens: int) -> None:
    first, last = events[0], events[-1]
    assert isinstance(first, Accepted)
    assert isinstance(last, Finished)
    assert sum(isinstance(event, Accepted) for event in events) == 1
    assert Alive(Phase.REQUEUED, 0.0, 0) in events
    for choice in range(n):
        tokens = [event for event in events if isinstance(event, Tokens) and event.choice == choice]
        ends_at = [event.index + len(event.ids) for event in tokens]
        assert [event.index for event in tokens] == [0, *ends_at[:-1]]
        assert ends_at[-1] == n_tokens
    assert last.usage.n_completion == n * n_tokens


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
