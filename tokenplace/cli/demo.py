"""`tokenplace demo`: a whole network of separate processes on loopback, asked one question.

Start at `Demo.run`. It asks over HTTP, as any app would.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import trio
import typer

from tokenplace.cli.models import ensure_model
from tokenplace.cli.output import INTERRUPTED, CommandFailed, counted, say
from tokenplace.cli.processes import PeerGroup, PeerProcess, is_offering, open_peers
from tokenplace.cli.stopping import until_signal
from tokenplace.models.catalogue import DEFAULT_MODEL
from tokenplace.node.trust_file import TrustFile
from tokenplace.settings import default_home, models_dir_of

ANSWER_TIMEOUT_S: Final = 120.0
MAX_ANSWER_TOKENS: Final = 200
ENDS_LOOK_S: Final = 0.5


class DemoFailed(CommandFailed):
    """The demo cannot go on; the text says why."""


@dataclass
class Demo:
    """The demo's settings. `is_answered`: the question was answered through the network."""

    prompt: str
    n_donors: int
    api_port: int
    n_threads: int
    once: bool
    is_answered: bool = False

    async def run(self, peers: PeerGroup) -> None:
        """Start the network, ask, print; stay up unless `once`.

        Raises `DemoFailed` or `PeerFailed`.
        """
        donors_text = counted(self.n_donors, "donor")
        say(f"starting 1 bootstrap peer, {donors_text} and 1 peer that asks ...")
        started = time.monotonic()
        bootstrap = await peers.start_bootstrap()
        n_threads = max(1, self.n_threads // self.n_donors)
        donors = [
            await peers.start_donor(f"donor-{number}", DEFAULT_MODEL.name, bootstrap, n_threads)
            for number in range(1, self.n_donors + 1)
        ]
        asker, api = await peers.start_asker("asker", bootstrap, self.api_port)
        trusted = TrustFile(asker.home)
        for donor in donors:
            status = await donor.wait(is_offering)
            trusted.add(status["peer_id"], donor.name)  # they are this person's own
            say(f"  {donor.name} donates {DEFAULT_MODEL.name} ({counted(n_threads, 'thread')})")
        await asker.wait(lambda s: len(s["donors"]) == self.n_donors)
        say(f"network ready after {time.monotonic() - started:.1f} s\n")
        await self._ask(api, donors)
        self.is_answered = True
        if not self.once:
            _say_what_next(api, asker.home, donors)
            await _tell_of_ends(peers.peers, asker)

    async def _ask(self, api: str, donors: list[PeerProcess]) -> None:
        """Ask as any app would, print the answer as it streams, then who gave it."""
        say(f"> {self.prompt}\n")
        answer = _Answer()
        try:
            donor_id = await self._stream(f"{api}/chat/completions", answer)
        except httpx.HTTPError as error:
            raise DemoFailed(f"the local API broke off: {type(error).__name__}") from error
        print(flush=True)
        if not answer.is_done or answer.first_s is None:
            raise DemoFailed(answer.problem or "the answer ended before it was whole")
        names = [d.name for d in donors if ((await d.status()) or {}).get("peer_id") == donor_id]
        if not names:
            raise DemoFailed(
                f"the answer did not come from one of the donors, but from {donor_id!r}"
            )
        say(
            f"\nanswered by {names[0]} ({donor_id}), found through the network: first token after "
            f"{answer.first_s * 1000:.0f} ms, {answer.n_tokens} tokens at "
            f"{answer.speed_tps:.0f} tokens/s"
        )

    async def _stream(self, url: str, answer: _Answer) -> str:
        """Put the streamed answer into `answer`; the peer id of the donor that accepted."""
        body = {
            "model": DEFAULT_MODEL.name,
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": MAX_ANSWER_TOKENS,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with (
            httpx.AsyncClient(timeout=ANSWER_TIMEOUT_S) as client,
            client.stream("POST", url, json=body) as response,
        ):
            if response.status_code != 200:
                problem = json.loads(await response.aread())["error"]["message"]
                raise DemoFailed(f"the API answered {response.status_code}: {problem}")
            async for line in response.aiter_lines():
                answer.take(line)
            return str(response.headers.get("x-tokenplace-accepted-by", ""))


@dataclass
class _Answer:
    """A streamed answer as it comes in; prints what is new."""

    started: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    n_tokens: int = 0
    is_done: bool = False
    problem: str = ""
    speed_tps: float = 0.0

    def take(self, line: str) -> None:
        if not line.startswith("data: "):
            return
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            self.is_done = True
            return
        event = json.loads(data)
        if "error" in event:
            self.problem = event["error"]["message"]
            return
        for choice in event["choices"]:
            if text := choice["delta"].get("content"):
                self.first_s = self.first_s or time.monotonic() - self.started
                print(text, end="", flush=True)
        if usage := event.get("usage"):
            self.n_tokens = usage["completion_tokens"]
            decode_s = time.monotonic() - self.started - (self.first_s or 0.0)
            self.speed_tps = (self.n_tokens - 1) / decode_s if decode_s > 0 else 0.0


async def _tell_of_ends(peers: Sequence[PeerProcess], asker: PeerProcess) -> None:
    """Say which peers end, while the network goes on without them. Raises `PeerFailed` when the
    peer has ended whose API the person uses.
    """
    running = list(peers)
    while True:
        asker.check()
        for peer in [peer for peer in running if peer.has_ended]:
            running.remove(peer)
            say(f"{peer.name} has ended; the others go on without it.")
        await trio.sleep(ENDS_LOOK_S)


def _say_what_next(api: str, home: Path, donors: Sequence[PeerProcess]) -> None:
    say(
        f"""
The network stays up. Open {api.removesuffix("v1")} in a browser to chat. Or in another terminal:

  export OPENAI_BASE_URL={api}
  export OPENAI_API_KEY=anything

  curl {api}/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{DEFAULT_MODEL.name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'

  {sys.argv[0]} peer status --home {home}
{_kills(donors)}
Ctrl-C ends it."""
    )


def _kills(donors: Sequence[PeerProcess]) -> str:
    if len(donors) < 2:
        return ""
    kills = "\n".join(f"  kill -9 {donor.process.pid}    # {donor.name}" for donor in donors)
    return f"\nKill a donor while it answers, and another goes on where it was:\n\n{kills}\n"


async def _run(demo: Demo, folder: Path) -> None:
    async with until_signal(), open_peers(folder) as peers:
        await demo.run(peers)


def run_demo(
    *, prompt: str, n_donors: int, api_port: int, n_threads: int | None, once: bool
) -> None:
    """Run the demo in the foreground; exit status 0 only if the answer came through the network."""
    home = default_home()
    ensure_model(home, models_dir_of(home), DEFAULT_MODEL.name, may_fetch=True)
    demo = Demo(prompt, n_donors, api_port, n_threads or os.cpu_count() or 1, once)
    with tempfile.TemporaryDirectory(prefix="tokenplace-demo-") as folder:
        trio.run(_run, demo, Path(folder))
    raise typer.Exit(0 if demo.is_answered else INTERRUPTED)
