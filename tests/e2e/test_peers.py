"""A person at the terminal: starting peers, joining, looking, talking, stopping."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import trio

from tests.e2e.network import MODEL, Network, wait_for
from tokenplace.cli.demo import Demo
from tokenplace.cli.processes import LOOPBACK, PeerFailed, is_offering, open_peers
from tokenplace.node.addresses import short

pytestmark = pytest.mark.slow
TOKENPLACE = [sys.executable, "-m", "tokenplace", "--config", os.devnull]


def run(*arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TOKENPLACE, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )


async def test_two_machines_are_joined_by_the_line_that_invite_prints(
    short_folder: Path, tiny_model: Path
) -> None:
    folder = short_folder / "two"
    folder.mkdir()
    async with open_peers(folder) as peers:
        donor = await peers.start(
            "donor", "--donate", MODEL, "--listen", LOOPBACK, "--no-api", "--threads", "1"
        )
        await donor.wait(is_offering)
        invite = await trio.to_thread.run_sync(run, "peer", "invite", "--home", str(donor.home))
        command, up, flag, addr = invite.stdout.split()
        assert (command, up, flag) == ("tokenplace", "up", "--bootstrap")
        started = time.monotonic()
        _, api = await peers.start_asker("asker", addr, 0)
        question = {"model": MODEL, "prompt": "One, two,", "max_tokens": 3}
        async with httpx.AsyncClient(timeout=60) as client:
            answer = await client.post(f"{api}/completions", json=question)
        assert answer.status_code == 200, answer.text
        print(f"first answer {time.monotonic() - started:.2f} s after the second peer's start")


async def test_a_peer_that_knows_nobody_says_so_and_what_to_do(short_folder: Path) -> None:
    folder = short_folder / "alone"
    folder.mkdir()
    async with open_peers(folder) as peers:
        peer = await peers.start("peer", "--api-port", "0")
        status = await peer.wait(lambda s: s["api"] and s["join"]["state"] == "alone")
        async with httpx.AsyncClient(timeout=30) as client:
            answer = await client.post(
                f"{status['api']['url']}/completions", json={"model": MODEL, "prompt": "x"}
            )
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert "names no other peer" in answer.json()["error"]["message"]
        assert "--bootstrap" in peer.output


async def test_a_donor_answers_its_own_apps_with_nobody_else_on_earth(
    short_folder: Path, tiny_model: Path
) -> None:
    folder = short_folder / "own"
    folder.mkdir()
    async with open_peers(folder) as peers:
        peer = await peers.start(
            "peer", "--donate", MODEL, "--listen", LOOPBACK, "--api-port", "0", "--threads", "1"
        )
        status = await peer.wait(is_offering)
        question = {"model": MODEL, "prompt": "One, two,", "max_tokens": 3}
        async with httpx.AsyncClient(timeout=60) as client:
            answer = await client.post(f"{status['api']['url']}/completions", json=question)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-tokenplace-accepted-by"] == "self"


async def test_a_stopped_peer_ends_in_order_whatever_it_was_doing(
    short_folder: Path, tiny_model: Path
) -> None:
    folder = short_folder / "stopped"
    folder.mkdir()
    async with open_peers(folder) as peers, httpx.AsyncClient(timeout=60) as client:
        peer = await peers.start(
            "peer", "--donate", MODEL, "--listen", LOOPBACK, "--api-port", "0", "--threads", "1"
        )
        status = await peer.wait(is_offering)
        asked = {"model": MODEL, "prompt": "One,", "max_tokens": 2000, "ignore_eos": True}
        url = f"{status['api']['url']}/completions"
        async with client.stream("POST", url, json=asked | {"stream": True}) as response:
            lines = response.aiter_lines()
            seen = [await anext(lines)]
            assert seen[0].startswith("data: ")
            peer.process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):  # never a quiet end
                await read_into(seen, lines)
        last = [line for line in seen if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopping"
        # The last resort after 4.8 s would show as a signal.
        assert await peer.process.wait() == 0
        assert "Traceback" not in peer.output
        assert not (peer.home / "control.sock").exists()


async def read_into(seen: list[str], lines: AsyncIterator[str]) -> None:
    async for line in lines:
        seen.append(line)  # noqa: PERF401  (what came before an error counts)


async def test_a_file_that_is_no_model_leaves_the_peer_up(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = short_folder / "noise"
    folder.mkdir()
    (folder / "noise.gguf").write_bytes(b"no model")
    monkeypatch.chdir(folder)
    async with open_peers(folder) as peers:
        peer = await peers.start("peer", "--donate", "noise.gguf", "--listen", LOOPBACK, "--no-api")
        with pytest.raises(PeerFailed, match="not a GGUF file"):
            await peer.wait(is_offering)
        status = await peer.wait(lambda s: s["models"])
        assert status["models"][0]["state"] == "failed"
        assert "noise.gguf is not offered: " in peer.output
        shown = await trio.to_thread.run_sync(run, "peer", "status", "--home", str(peer.home))
        assert "not a GGUF file" in shown.stdout


def test_one_home_holds_one_running_peer(network: Network) -> None:
    assert network.asker is not None
    second = run("up", "--home", str(network.asker.home), "--api-port", "0")
    assert second.returncode == 1
    assert "already runs" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_taken_api_port_is_named(network: Network, tmp_path: Path) -> None:
    port = network.api.split(":")[2].split("/")[0]
    second = run("up", "--home", str(tmp_path), "--api-port", port)
    assert second.returncode == 1
    assert port in second.stderr
    assert "--api-port" in second.stderr


def test_status_shows_the_network_to_people_and_programs(network: Network) -> None:
    assert network.asker is not None
    donor = network.donors[0]
    text = run("peer", "status", "--home", str(network.asker.home)).stdout
    assert short(network.status(donor)["peer_id"]) in text
    assert MODEL in text
    data = json.loads(run("peer", "status", "--json", "--home", str(donor.home)).stdout)
    assert data["models"][0]["state"] == "offered"
    assert data["addresses"][0].startswith("/ip4/127.0.0.1/tcp/")
    assert "offered" in run("peer", "status", "--home", str(donor.home)).stdout


def test_chat_asks_through_the_running_peer(network: Network) -> None:
    assert network.asker is not None
    asked = ["--model", MODEL, "--max-tokens", "8", "--home", str(network.asker.home)]
    talk = run("chat", "Say hello.", *asked)
    assert talk.returncode == 0, talk.stderr
    assert talk.stdout.strip()
    for arguments in (["Hello.", "--model", "nobody"], ["\udcff"]):
        refused = run("chat", *arguments, "--home", str(network.asker.home))
        assert refused.returncode == 1
        assert refused.stdout == "", "only answers go to stdout"
        assert refused.stderr.startswith("error: ")
        assert "Traceback" not in refused.stderr


def test_the_demo_answers_once_through_the_network(tiny_model: Path) -> None:
    asked = ["--prompt", "Say hello.", "--api-port", "0", "--threads", "2"]
    demo = run("demo", "--once", *asked, timeout_s=120)
    assert demo.returncode == 0, demo.stderr
    assert demo.stdout.strip()
    assert "answered by donor-" in demo.stderr


async def test_the_demo_trusts_its_own_donors(short_folder: Path, tiny_model: Path) -> None:
    folder = short_folder / "demo"
    folder.mkdir()
    async with open_peers(folder) as peers:
        await Demo("Say hello.", n_donors=2, api_port=0, n_threads=2, once=True).run(peers)
        donors = {p.name: await p.status() for p in peers.peers if p.name.startswith("donor")}
        asker = next(p for p in peers.peers if p.name == "asker")
        status = await asker.status()
    assert status is not None
    expected = {donor["peer_id"]: name for name, donor in donors.items() if donor}
    assert len(expected) == 2
    assert status["trust"] == {"tools_from": "trusted", "peers": expected, "problem": ""}


@dataclass
class RunningDemo:
    """said: what it has told the person, up to here."""

    process: subprocess.Popen[str]
    said: str = ""

    def wait_for(self, words: str) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            if words in line:
                return
        raise AssertionError(f"it never said {words!r} but {self.said!r}")

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def running_demo(n_donors: int = 1) -> Iterator[RunningDemo]:
    """A demo that has answered."""
    process = subprocess.Popen(
        [*TOKENPLACE, "demo", "--api-port", "0", "--donors", str(n_donors), "--threads", "1"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    demo = RunningDemo(process)
    try:
        with process.stderr:
            demo.wait_for("Ctrl-C ends it")
            yield demo
    finally:
        process.kill()
        process.wait()


def test_ctrl_c_ends_the_whole_demo(tiny_model: Path) -> None:
    with running_demo() as demo:
        family = demo.family()
        assert len(family) >= 4, "bootstrap, donor, its worker, asker"
        demo.process.send_signal(signal.SIGINT)
        demo.process.wait(timeout=10)
    assert demo.process.returncode == 0
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_a_donor_killed_as_the_demo_says_costs_no_answer(tiny_model: Path) -> None:
    with running_demo(n_donors=2) as demo:
        (api,) = re.findall(r"OPENAI_BASE_URL=(\S+)", demo.said)
        pids = dict(reversed(each) for each in re.findall(r"kill -9 (\d+) +# (\S+)", demo.said))
        ((first, peer_id),) = re.findall(r"answered by (\S+) \((\S+)\)", demo.said)
        body = {"model": "auto", "prompt": "Once", "max_tokens": 300, "ignore_eos": True}
        lines = []
        with httpx.stream("POST", f"{api}/completions", json=body | {"stream": True}) as answer:
            assert answer.headers["x-tokenplace-accepted-by"] == peer_id, "the one measured"
            for line in answer.iter_lines():
                lines.append(line)
                if len(lines) == 10:
                    os.kill(int(pids[first]), signal.SIGKILL)
        assert lines[-2] == "data: [DONE]"
        assert any(line.startswith(": continued on ") for line in lines)
        demo.wait_for(f"{first} has ended; the others go on without it.")
        demo.process.send_signal(signal.SIGINT)
        assert demo.process.wait(timeout=10) == 0


def test_a_killed_demo_leaves_no_process_behind(tiny_model: Path) -> None:
    with running_demo() as demo:
        family = demo.family()
        demo.process.kill()
        demo.process.wait()
    wait_for(lambda: not [p for p in family if p.is_running()], "all are gone", within_s=30)
