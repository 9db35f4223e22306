"""Real network namespaces, and what happens to those who are in them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import trio

from benchmarks.lab import lab as lab_module
from benchmarks.lab.lab import Lab, LabFailed, open_lab, why_not
from benchmarks.lab.router import address

pytestmark = pytest.mark.usefixtures("has_lab")

PORT = 7000
WAIT_S = 30.0
ECHO = f"""
import socket
server = socket.create_server(("0.0.0.0", {PORT}))
print("listening", flush=True)
while True:
    connection, _ = server.accept()
    while data := connection.recv(65536):
        connection.sendall(data)
"""
# One line for each line that it reads: the seconds that a byte took there and back.
CALL = f"""
import socket, sys, time
connection = socket.create_connection((sys.argv[1], {PORT}), timeout=20)
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for line in sys.stdin:
    began = time.monotonic()
    connection.sendall(b"x")
    connection.recv(1)
    print(time.monotonic() - began, flush=True)
"""
REACHES = """
import socket, sys
print(socket.socket().connect_ex((sys.argv[1], int(sys.argv[2]))), flush=True)
"""


async def start(lab: Lab, host: int, program: str, *arguments: str) -> trio.Process:
    return await lab.popen(
        host,
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


async def line_of(process: trio.Process) -> str:
    assert process.stdout is not None
    with trio.fail_after(WAIT_S):
        data = b""
        while not data.endswith(b"\n"):
            part = await process.stdout.receive_some()
            assert part, "it has ended"
            data += part
    return data.decode().strip()


class Call:
    """A connection from one host to another's echo."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process

    async def round_trip_s(self) -> float:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(b"\n")
        return float(await line_of(self._process))


async def connect(lab: Lab, source: int, target: int) -> Call:
    echo = await start(lab, target, ECHO)
    assert await line_of(echo) == "listening"
    call = Call(await start(lab, source, CALL, lab.ip(target)))
    await call.round_trip_s()
    return call


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


async def test_links_delay_what_hosts_say_to_each_other() -> None:
    async with open_lab(2) as lab:
        call = await connect(lab, 0, 1)
        await lab.link(0, 1, delay_s=0.1)
        assert await call.round_trip_s() >= 0.2
        await lab.link(1, 0, is_both_ways=False, delay_s=0.0)
        assert await call.round_trip_s() >= 0.1
        traffic = await lab.traffic()
        assert traffic.n_carried > 0
        assert traffic.n_lost == traffic.n_cut == 0


async def test_a_partition_lets_nothing_through_until_it_is_mended() -> None:
    async with open_lab(3) as lab:
        call, other = await connect(lab, 0, 1), await connect(lab, 1, 2)
        await lab.partition({0}, {1, 2})
        with trio.move_on_after(0.5) as waiting:
            await call.round_trip_s()
        assert waiting.cancelled_caught
        await other.round_trip_s()
        assert (await lab.traffic()).n_cut > 0
        await lab.partition({0}, {1, 2}, is_up=True)
        float(await line_of(call._process))


async def test_a_flap_ends_by_itself_and_when_it_is_cancelled() -> None:
    async with open_lab(2) as lab:
        call = await connect(lab, 0, 1)
        await lab.flap(0, 0.1)
        await call.round_trip_s()
        with trio.move_on_after(0.1):
            await lab.flap(0, 1000)
        await call.round_trip_s()


async def test_hosts_reach_nobody_but_each_other(has_lab: None) -> None:
    with socket.create_server(("0.0.0.0", 0)) as outside:
        port = str(outside.getsockname()[1])
        async with open_lab(2) as lab:
            for target in ("127.0.0.1", "192.0.2.1", own_address()):
                process = await start(lab, 0, REACHES, target, port)
                assert await line_of(process) != "0", target


def own_address() -> str:
    """An address of this machine outside of the lab."""
    addresses = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family is socket.AF_INET
    ]
    return next((a for a in addresses if not a.startswith("127.")), "127.0.0.1")


async def test_processes_keep_their_id_and_their_user() -> None:
    program = "import os; print(os.getpid(), os.getuid(), flush=True)"
    async with open_lab(1) as lab:
        process = await start(lab, 0, program)
        assert await line_of(process) == f"{process.pid} {os.getuid()}"


async def test_two_labs_know_nothing_of_each_other() -> None:
    async with open_lab(2) as one, open_lab(2) as other:
        assert one.ip(1) == other.ip(1) == address(1)
        await connect(one, 0, 1)
        process = await start(other, 0, REACHES, other.ip(1), str(PORT))
        assert await line_of(process) != "0"


# ---------------------------------------------------------------- nothing is left

FORKS = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
print(child.pid, flush=True)
child.wait()
"""


async def test_nothing_is_left_of_a_lab() -> None:
    async with open_lab(1) as lab:
        process = await start(lab, 0, FORKS)
        grandchild = int(await line_of(process))
        carrier = lab._carrier.pid
    assert process.returncode == -signal.SIGKILL
    wait_for(lambda: not is_running(grandchild), "its children's children are gone")
    assert not is_running(carrier)


LEAVES_A_LAB = """
import subprocess, sys, trio
from benchmarks.lab.lab import open_lab

async def main():
    async with open_lab(1) as lab:
        sleeper = [sys.executable, "-c", "import time; print(flush=True); time.sleep(1000)"]
        process = await lab.popen(0, sleeper, stdout=subprocess.PIPE)
        await process.stdout.receive_some(1)
        print(process.pid, lab._carrier.pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def test_nothing_is_left_when_whoever_made_it_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LEAVES_A_LAB], stdout=subprocess.PIPE, cwd=lab_module.ROOT
    ) as maker:
        assert maker.stdout is not None
        pids = [int(pid) for pid in maker.stdout.readline().split()]
        assert all(map(is_running, pids))
        maker.kill()
    wait_for(lambda: not any(map(is_running, pids)), "process and carrier are gone")


async def test_a_carrier_that_dies_is_said_so() -> None:
    async with open_lab(2) as lab:
        lab._carrier.kill()
        await lab._carrier.wait()
        with pytest.raises(LabFailed, match="ended"):
            await lab.traffic()


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ---------------------------------------------------------------- without root, or without a lab

# The carrier, but that it may not make namespaces so often.
REFUSED_CARRIER = """
from benchmarks.lab import carrier, namespaces

unshare, n_refused = namespaces._unshare, 0

def refuse(flags):
    global n_refused
    n_refused += 1
    if n_refused <= {times}:
        raise PermissionError(1, "Operation not permitted")
    unshare(flags)

namespaces._unshare = refuse
carrier.main()
"""


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Call it with how often the system refuses to make a namespace."""

    def refuse(times: int) -> None:
        program = REFUSED_CARRIER.format(times=times)
        monkeypatch.setattr(
            lab_module,
            "_carrier_command",
            lambda n_hosts, seed: [sys.executable, "-c", program, str(n_hosts), str(seed)],
        )
        why_not.cache_clear()

    yield refuse
    why_not.cache_clear()


async def test_who_is_not_root_makes_a_user_namespace(refuse: Callable[[int], None]) -> None:
    refuse(1)
    if reason := why_not():
        pytest.skip(f"no user namespaces: {reason}")
    async with open_lab(2) as lab:
        assert "--preserve-credentials" in lab.command(0, [])
        call = await connect(lab, 0, 1)
        await call.round_trip_s()
        process = await start(lab, 0, "import os; print(os.getuid(), flush=True)")
        assert await line_of(process) == str(os.getuid())


async def test_where_nobody_may_make_namespaces_it_is_said(refuse: Callable[[int], None]) -> None:
    refuse(1000)
    assert why_not() == "no network namespace can be made: Operation not permitted"
    with pytest.raises(LabFailed, match="Operation not permitted"):
        async with open_lab(1):
            pass


def test_what_is_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, refuse: Callable[[int], None]
) -> None:
    refuse(0)
    monkeypatch.setattr(lab_module, "TUN_FILE", Path("/nowhere/tun"))
    assert why_not() == "/nowhere/tun cannot be opened"
    monkeypatch.undo()
    why_not.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert "nsenter" in why_not()
