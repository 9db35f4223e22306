"""What a confined process can no longer do, and what it still can."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from tests.conftest import ROOT
from tests.engine.parts import ask as ask_engine
from tests.engine.parts import chat, text_of, tiny_spec
from tokenplace import defaults
from tokenplace.engine.blackbox import BlackBox
from tokenplace.engine.confine import NETWORK, PROGRAMS, PROTECTIONS
from tokenplace.engine.engine import open_engine
from tokenplace.engine.model_file import ModelFile
from tokenplace.engine.sandbox import Instruction, filter_program
from tokenplace.errors import ConfigError

on_linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="seccomp is spoken on Linux, and known for these processors",
)

STILL_POSSIBLE: Final = {
    *("pipe", "what is open", "thread", "random", "own limits", "some memory"),
}
FILE_ATTEMPTS: Final = {"read a file", "write a file", "list a folder"}
NETWORK_ATTEMPTS: Final = {"TCP", "connect", "UDP", "Unix socket"}


def tried(layer: str) -> tuple[Any, dict[str, str]]:
    """What is in force, and how each attempt ended."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.engine.confined_child", layer],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == -signal.SIGABRT, run.stderr
    in_force, outcomes = json.loads(run.stdout)
    return in_force, outcomes


def refused(outcomes: dict[str, str]) -> set[str]:
    return {what for what, outcome in outcomes.items() if outcome in ("EPERM", "EACCES")}


@on_linux
def test_what_is_tried_is_possible_without_confinement() -> None:
    """Or the other tests would show nothing."""
    _, outcomes = tried("none")
    assert refused(outcomes) == set()
    assert {what for what, outcome in outcomes.items() if outcome != "ok"} == {
        "program",  # there is none of that name
        "connect",  # nobody listens
        "others' memory",  # an address that is none
    }


@on_linux
def test_a_worker_computes_and_can_do_nothing_else() -> None:
    in_force, outcomes = tried("worker")
    assert in_force == [*PROTECTIONS]
    assert {what for what, outcome in outcomes.items() if outcome == "ok"} == STILL_POSSIBLE
    assert outcomes["much memory"] == "ENOMEM"
    assert refused(outcomes) == outcomes.keys() - STILL_POSSIBLE - {"much memory"}


@on_linux
def test_a_worker_with_a_gpu_keeps_its_files_and_memory() -> None:
    in_force, outcomes = tried("gpu")
    assert in_force == [NETWORK, PROGRAMS]
    assert refused(outcomes) == {*NETWORK_ATTEMPTS, "program", "others' memory"}
    assert outcomes["much memory"] == "ok"


@on_linux
def test_each_layer_holds_by_itself() -> None:
    is_in_force, outcomes = tried("seccomp")
    assert is_in_force
    assert refused(outcomes) == outcomes.keys() - STILL_POSSIBLE - {"much memory"}
    is_in_force, outcomes = tried("landlock")
    if is_in_force:  # not every kernel has it
        assert refused(outcomes) >= FILE_ATTEMPTS


# ---------------------------------------------------------------- the filter, by itself

ALLOWED: Final = "allowed"
CALLS: Final = {  # on x86_64 and aarch64
    "read": (0, 63),
    "openat": (257, 56),
    "socket": (41, 198),
    "connect": (42, 203),
    "clone": (56, 220),
    "clone3": (435, 435),
    "execve": (59, 221),
    "tgkill": (234, 131),
    "kill": (62, 129),
    "prlimit64": (302, 261),
    "ptrace": (101, 117),
    "futex": (202, 98),
    "ioctl": (16, 29),
    "io_uring_setup": (425, 425),
    "prctl": (157, 167),
}
PID: Final = 4321
THREAD: Final = 0x3D0F00  # what pthread_create asks of clone
FORK: Final = 0x1200011


def judged(program: list[Instruction], arch: int, number: int, argument: int = 0) -> str | int:
    """What the kernel's classic BPF machine makes of a call: ALLOWED, or the error it gets."""
    data = {0: number, 4: arch, 16: argument & 0xFFFFFFFF}
    accumulator = place = 0
    while True:
        code, if_so, if_not, k = program[place]
        place += 1
        match code:
            case 0x20:
                accumulator = data[k]
            case 0x15:
                place += if_so if accumulator == k else if_not
            case 0x35:
                place += if_so if accumulator >= k else if_not
            case 0x45:
                place += if_so if accumulator & k else if_not
            case 0x06:
                return ALLOWED if k == 0x7FFF0000 else k & 0xFFFF
            case _:
                raise AssertionError(f"an unknown instruction: {code:#x}")


@pytest.mark.parametrize(
    ("machine", "place", "arch"), [("x86_64", 0, 0xC000003E), ("aarch64", 1, 0xC00000B7)]
)
def test_the_filter_on_both_processors(machine: str, place: int, arch: int) -> None:
    def asked(has_gpu: bool, name: str, argument: int = 0) -> str | int:
        program = filter_program(machine, PID, has_gpu=has_gpu)
        return judged(program, arch, CALLS[name][place], argument)

    for name in ("read", "futex"):
        assert asked(False, name) == asked(True, name) == ALLOWED
    for name in ("socket", "execve", "ptrace", "io_uring_setup"):
        assert asked(False, name) == asked(True, name) == errno.EPERM
    for name in ("openat", "connect", "kill", "ioctl", "prctl"):
        assert asked(False, name) == errno.EPERM
        assert asked(True, name) == ALLOWED
    assert asked(False, "clone", THREAD) == ALLOWED
    assert asked(False, "clone", FORK) == errno.EPERM
    assert asked(False, "clone3") == errno.ENOSYS
    assert asked(False, "tgkill", PID) == ALLOWED
    assert asked(False, "tgkill", 1) == errno.EPERM
    assert asked(False, "prlimit64", 0) == ALLOWED
    assert asked(False, "prlimit64", 1) == errno.EPERM


def test_another_set_of_numbers_is_refused() -> None:
    """32-bit programs' and x32's, under which the numbers mean other calls."""
    program = filter_program("x86_64", PID, has_gpu=False)
    assert judged(program, 0x40000003, 0) == errno.EPERM
    assert judged(program, 0xC000003E, 0x40000000) == errno.EPERM


# ---------------------------------------------------------------- the real worker


def assert_confined(pid: int) -> None:
    """As the kernel sees it."""
    status = Path(f"/proc/{pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    limits = Path(f"/proc/{pid}/limits").read_text()
    (core,) = (line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
    (data,) = (line for line in limits.splitlines() if line.startswith("Max data size"))
    assert int(data.split()[3]) > defaults.WORKER_GROWTH_BYTES


@on_linux
@pytest.mark.slow
async def test_the_worker_is_confined_and_loads_the_file_that_was_opened(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Whatever becomes of its path: also when it has to start again."""
    path = tmp_path / "model.gguf"
    path.symlink_to(tiny_model)
    with trio.fail_after(60):
        async with open_engine(tiny_spec(path)) as engine:
            assert engine.load.confinement == PROTECTIONS
            hello = text_of(await ask_engine(engine, chat()))
            path.unlink()
            path.write_text("not a model")
            async with engine.generate(chat("A story.", ignore_eog=True)) as events:
                await events.receive()
                os.kill(engine.worker_pid, signal.SIGKILL)
                async for _ in events:
                    pass
            assert engine.load.restarts == 1
            assert text_of(await ask_engine(engine, chat())) == hello
            assert_confined(engine.worker_pid)


# ---------------------------------------------------------------- what the parent hands down


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF and so on")
    file = ModelFile(path)
    path.rename(tmp_path / "elsewhere.gguf")
    file.check()
    assert Path(file.path_for_child).read_bytes() == b"GGUF and so on"
    (tmp_path / "elsewhere.gguf").write_bytes(b"GGUF and more so")
    with pytest.raises(ConfigError, match="hashed"):
        file.check()
    file.close()
    file.close()


def test_without_proc_the_path_has_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenplace.engine.model_file._DESCRIPTORS", tmp_path / "nowhere")
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF and so on")
    file = ModelFile(path)
    assert file.path_for_child == str(path)
    file.check()
    path.rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(ConfigError, match="No such file"):
        file.check()
    path.write_bytes(b"GGUF and so on")
    with pytest.raises(ConfigError, match="hashed"):
        file.check()
    file.close()


def test_the_black_box_is_read_by_another_process_and_bounded() -> None:
    box, fd = BlackBox.create()
    other = BlackBox.open(fd)
    os.close(fd)
    assert box.read() == frozenset()
    other.note([3, 1, -1])
    assert box.read() == {3, 1, -1}
    other.note([7])
    assert box.read() == {7}
    other.clear()
    assert box.read() == frozenset()
    other.note(range(100_000))
    assert len(box.read()) < 1000
    other._memory[:8] = b"\xff" * 7 + b"\x7f"  # a count that cannot be
    assert len(box.read()) < 1000
    BlackBox.open(None).note([1])
    box.close()
    other.close()
