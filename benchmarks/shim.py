"""The local API under load: requests a second, CPU of a streamed event, memory. Start at `measure`.

`python -m benchmarks.shim [--quick] [--json FILE]`. Rival: a bare ASGI app that sends as many
bytes on the same server, in the same run, in turns with ours. A fake engine gives every stream 20
tokens a second; the client is this process, the server another one, whose CPU and memory count.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Final

import psutil
import trio

from benchmarks.engine_rounds import others_busy
from benchmarks.report import Row, parse_arguments, report

HOST: Final = "127.0.0.1"
TOKENS_PER_S: Final = 20.0
STREAMS: Final = (1, 16, 128)
ROUNDS, QUICK_ROUNDS = 3, 1
STREAM_S, QUICK_STREAM_S = 10.0, 4.0
ASK_S, QUICK_ASK_S = 5.0, 2.0
FAST_TPS: Final = 1e6  # of requests that do not stream: what counts is all but the tokens
CORE_AIM: Final = 1.0
MARGIN_S: Final = 30.0
READ_BYTES: Final = 1 << 16


class Server:
    """One arm's process."""

    def __init__(self, arm: str, tokens_per_s: float) -> None:
        command = [sys.executable, "-m", "benchmarks.shim_server", arm, f"{tokens_per_s:g}"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self._measured = psutil.Process(self._process.pid)

    @property
    def cpu_s(self) -> float:
        """CPU seconds that it has used."""
        times = self._measured.cpu_times()
        return float(times.user + times.system)

    @property
    def memory_mb(self) -> float:
        """Resident now."""
        return float(self._measured.memory_info().rss / 1e6)

    def stop(self) -> None:
        """End it, and wait until it is gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def both(tokens_per_s: float) -> Iterator[tuple[Server, Server]]:
    """Our API and the bare app."""
    ours, bare = Server("ours", tokens_per_s), Server("bare", tokens_per_s)
    try:
        yield ours, bare
    finally:
        ours.stop()
        bare.stop()


@dataclass
class Load:
    """What came of one arm's streams. cpu_s: of the server; n_events: with text, of all streams."""

    n_events: int = 0
    n_wanted: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    memory_mb: float = 0.0
    late_s: list[float] = field(default_factory=list)

    @property
    def event_us(self) -> float:
        """CPU of one event, in microseconds."""
        return 1e6 * self.cpu_s / self.n_events

    @property
    def cores(self) -> float:
        """CPU while it lasted, in cores."""
        return self.cpu_s / self.wall_s


def body(n_tokens: int, *, stream: bool) -> bytes:
    """A request of an app."""
    wanted = {
        "model": "fake-model",
        "messages": [{"role": "user", "content": "Tell me about a river."}],
        "max_tokens": n_tokens,
        "stream": stream,
    }
    return json.dumps(wanted).encode()


def request(port: int, payload: bytes) -> bytes:
    """The same as HTTP."""
    head = (
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: {HOST}:{port}",
        "Content-Type: application/json",
        f"Content-Length: {len(payload)}",
    )
    return "\r\n".join((*head, "", "")).encode() + payload


async def stream_once(server: Server, n_tokens: int, load: Load) -> None:
    """One stream, read as fast as it comes, to its end."""
    began_at = trio.current_time()
    n_events, tail = 0, b""
    async with await trio.open_tcp_stream(HOST, server.port) as stream:
        await stream.send_all(request(server.port, body(n_tokens, stream=True)))
        async for data in stream:
            tail += data
            lines = tail.split(b"\n")
            tail = lines.pop()
            n_events += sum(
                b'"content":"' in line and b'"content":""' not in line for line in lines
            )
            if n_events >= n_tokens or any(line == b"data: [DONE]" for line in lines):
                break
    load.n_events += n_events
    load.late_s.append(trio.current_time() - began_at - n_tokens / TOKENS_PER_S)


async def stream_many(server: Server, n: int, seconds: float) -> Load:
    """So many streams at once, of so many seconds."""
    n_tokens = round(seconds * TOKENS_PER_S)
    load = Load(n_wanted=n * n_tokens)
    cpu_s, began_at = server.cpu_s, trio.current_time()
    with trio.fail_after(seconds + MARGIN_S):
        async with trio.open_nursery() as nursery:
            for _ in range(n):
                nursery.start_soon(stream_once, server, n_tokens, load)
            await trio.sleep(seconds / 2)
            load.memory_mb = server.memory_mb
    load.cpu_s = server.cpu_s - cpu_s
    load.wall_s = trio.current_time() - began_at
    return load


async def read_some(stream: trio.SocketStream) -> bytes:
    """The next bytes; raises `RuntimeError` at the end of the connection."""
    data = await stream.receive_some(READ_BYTES)
    if not data:
        raise RuntimeError("the server closed the connection")
    return bytes(data)


async def read_answer(stream: trio.SocketStream) -> bool:
    """One answer, with a length or in chunks, to its last byte. False if the server will close."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await read_some(stream)
    head, _, rest = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), data
    lines = head.lower().split(b"\r\n")
    lengths = [line for line in lines if line.startswith(b"content-length:")]
    if not lengths:
        while not rest.endswith(b"0\r\n\r\n"):
            rest += await read_some(stream)
        return b"connection: close" not in lines
    n_left = int(lengths[0].partition(b":")[2]) - len(rest)
    while n_left > 0:
        n_left -= len(await read_some(stream))
    return b"connection: close" not in lines


async def ask_many(server: Server, n: int, seconds: float) -> float:
    """Requests a second that are answered, so many at a time."""
    n_answered = 0
    ends_at = trio.current_time() + seconds
    payload = request(server.port, body(1, stream=False))

    async def ask() -> None:
        nonlocal n_answered
        while trio.current_time() < ends_at:
            async with await trio.open_tcp_stream(HOST, server.port) as stream:
                is_open = True
                while is_open and trio.current_time() < ends_at:
                    await stream.send_all(payload)
                    is_open = await read_answer(stream)
                    n_answered += 1

    async with trio.open_nursery() as nursery:
        for _ in range(n):
            nursery.start_soon(ask)
    return n_answered / seconds


async def measure_requests(rounds: int, seconds: float) -> list[Row]:
    """Answers of one token, as fast as they come."""
    rows = []
    with both(FAST_TPS) as arms:
        busy = others_busy()
        for n in STREAMS:
            pairs = []
            for number in range(rounds + 1):  # the first is not counted
                order = arms if number % 2 == 0 else tuple(reversed(arms))
                rates = {arm: await ask_many(arm, n, seconds) for arm in order}
                pairs.append((rates[arms[0]], rates[arms[1]]))
            ours, bare = (median(pair[i] for pair in pairs[1:]) for i in (0, 1))
            ratio = median(mine / theirs for mine, theirs in pairs[1:])
            rows.append(Row("requests", n, ours, bare, ratio, "1/s", None))
        rows.append(others_row("requests", busy()))
    return rows


async def measure_streams(rounds: int, seconds: float) -> list[Row]:
    """Streams of 20 tokens a second."""
    rows = []
    with both(TOKENS_PER_S) as arms:
        busy = others_busy()
        for n in STREAMS:
            pairs = []
            for number in range(rounds):
                order = arms if number % 2 == 0 else tuple(reversed(arms))
                loads = {arm: await stream_many(arm, n, seconds) for arm in order}
                pairs.append((loads[arms[0]], loads[arms[1]]))
            rows += stream_rows(n, pairs)
        rows.append(others_row("streams", busy()))
    return rows


def others_row(what: str, cores: float) -> Row:
    """What other programs did meanwhile."""
    return Row(f"{what}: CPU of others", None, 100 * cores, None, None, "% of a core", None)


def stream_rows(n: int, pairs: list[tuple[Load, Load]]) -> list[Row]:
    """Medians of the rounds; of what was lost and how late, the worst."""

    def row(name: str, unit: str, figure: str, aim: float | None = None) -> Row:
        ours, bare = (median(getattr(pair[i], figure) for pair in pairs) for i in (0, 1))
        ratio = median(getattr(a, figure) / getattr(b, figure) for a, b in pairs)
        return Row(name, n, ours, bare, ratio, unit, None if aim is None else ours <= aim)

    is_largest = n == max(STREAMS)
    n_lost, n_lost_bare = (
        sum(pair[i].n_wanted - pair[i].n_events for pair in pairs) for i in (0, 1)
    )
    late_s, late_bare_s = (max(max(pair[i].late_s) for pair in pairs) for i in (0, 1))
    return [
        row("streams: CPU of an event", "us", "event_us"),
        row("streams: CPU", "cores", "cores", CORE_AIM if is_largest else None),
        row("streams: memory", "MB", "memory_mb"),
        Row("streams: events lost", n, n_lost, n_lost_bare, None, "", n_lost == 0),
        Row("streams: last token late by", n, late_s, late_bare_s, None, "s", None),
    ]


async def measure(*, is_quick: bool) -> list[Row]:
    """All of it."""
    rounds = QUICK_ROUNDS if is_quick else ROUNDS
    rows = await measure_requests(rounds, QUICK_ASK_S if is_quick else ASK_S)
    return rows + await measure_streams(rounds, QUICK_STREAM_S if is_quick else STREAM_S)


def main() -> None:
    """Measure and report."""
    arguments = parse_arguments(__doc__ or "")
    rows = trio.run(lambda: measure(is_quick=arguments.quick))
    report("the local API against a bare app on the same server", rows, arguments.json)


if __name__ == "__main__":
    main()
