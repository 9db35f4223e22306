"""What the world throws at a network: killed, frozen and crashed donors.

Each test may break its own network.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.network import MODEL, Network, frozen, open_network, wait_for, workers_of
from tokenplace.defaults import IDLE_TIMEOUT_S

pytestmark = pytest.mark.slow
CANARY = "The canary sings at noon about quicksilver."


@pytest.fixture(scope="module")
def breakable(short_folder: Path, tiny_model: Path) -> Iterator[Network]:
    folder = short_folder / "breakable"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENPLACE_LOG", "INFO")  # there is to be something to look through
        with open_network(folder, n_donors=2) as network:
            yield network


@pytest.fixture
def fragile(breakable: Network) -> Network:
    """A network of two healthy donors; the test may break it, the next one gets it mended."""
    while len(breakable.donors) < 2:
        breakable.add_donor()
    breakable.wait_ready()
    return breakable


def body(*, stream: bool, max_tokens: int = 600) -> dict[str, object]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": CANARY}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": stream,
    }


class KilledStream:
    """A streamed answer whose donor is killed at the fifth piece of text."""

    def __init__(self, network: Network, max_tokens: int = 600) -> None:
        self.network = network
        self.body = {
            **body(stream=True, max_tokens=max_tokens),
            "stream_options": {"include_usage": True},
        }
        self.lines: list[str] = []
        self.killed_at = 0.0

    def read(self) -> None:
        url = f"{self.network.api}/chat/completions"
        with (
            httpx.Client(timeout=60) as client,
            client.stream("POST", url, json=self.body) as response,
        ):
            donor = self.network.donor_of(response.headers["x-tokenplace-accepted-by"])
            for line in response.iter_lines():
                self.lines.append(line)
                n_pieces = sum('"content"' in seen for seen in self.lines)
                if n_pieces == 5 and not self.killed_at:
                    self.network.kill(donor)
                    self.killed_at = time.monotonic()


class Asked(threading.Thread):
    """A plain request in a thread of its own."""

    def __init__(self, api: str, max_tokens: int) -> None:
        super().__init__()
        self.api = api
        self.max_tokens = max_tokens
        self.response: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        asked = body(stream=False, max_tokens=self.max_tokens)
        self.response = httpx.post(f"{self.api}/chat/completions", json=asked, timeout=120)

    def answer(self) -> httpx.Response:
        self.join(120)
        assert self.response is not None, "no answer"
        return self.response


def tokens_of_the_latest(network: Network) -> list[int]:
    """New tokens by each attempt at the latest request."""
    assert network.asker is not None
    latest = network.status(network.asker)["requests"][-1]
    return [attempt["n_tokens"] for attempt in latest["attempts"]]


def holder_of_exchange(network: Network) -> str:
    """Name of the donor that has taken a request, or nothing yet."""
    busy = [d.name for d in network.donors if network.status(d)["exchanges"]["open"]]
    return busy[0] if busy else ""


def test_a_donor_killed_before_its_first_token_is_replaced(fragile: Network) -> None:
    workers = [w.pid for d in fragile.donors for w in workers_of(d)]
    with frozen(*workers):
        asked = Asked(fragile.api, max_tokens=5)
        wait_for(lambda: holder_of_exchange(fragile), "a donor has the request")
        victim = next(d for d in fragile.donors if d.name == holder_of_exchange(fragile))
        fragile.kill(victim)
    answer = asked.answer()
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 5


def test_a_stream_goes_on_with_a_twin_of_the_killed_donor(fragile: Network) -> None:
    stream = KilledStream(fragile, max_tokens=400)
    stream.read()
    events = [line.removeprefix("data: ") for line in stream.lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert not any("error" in chunk for chunk in chunks)
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert [reason for reason in reasons if reason] == ["length"]
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert [usage["completion_tokens"] for usage in usages] == [400]
    (donor,) = fragile.donors
    served = [line for line in stream.lines if line.startswith((": continued", ": served"))]
    assert len(served) == 3, served
    assert served[0].removeprefix(": continued on ") == served[2].removeprefix(": served by ")
    assert fragile.donor_of(served[2].removeprefix(": served by ")) is donor
    assert sum(tokens_of_the_latest(fragile)) == 400, "resumed, and not begun again"
    (route,) = [line for line in stream.lines if line.startswith(": route: ")]
    assert "=connection_lost@decode, " in route
    assert route.endswith("=finished")


def test_without_a_twin_a_killed_donor_is_an_error_event_and_an_aborted_stream(
    fragile: Network,
) -> None:
    fragile.kill(fragile.donors[-1])
    stream = KilledStream(fragile)
    with pytest.raises(httpx.RemoteProtocolError):
        stream.read()
    lines, killed_at = stream.lines, stream.killed_at
    took_s = time.monotonic() - killed_at
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert "error" in json.loads(events[-1]), "never a quiet end"
    error = json.loads(events[-1])["error"]
    assert error["code"] == "connection_lost"
    assert " connection_lost (decode, " in error["message"]
    assert fragile.asker is not None
    assert fragile.status(fragile.asker)["requests"][-1]["id"] == error["request_id"]
    assert "data: [DONE]" not in lines
    assert took_s < IDLE_TIMEOUT_S / 2, "promised within a second; long before silence would tell"


def test_a_request_that_does_not_stream_survives_a_donor_killed_in_mid_answer(
    fragile: Network,
) -> None:
    asked = Asked(fragile.api, max_tokens=150)
    wait_for(lambda: holder_of_exchange(fragile), "a donor has the request")
    victim = next(d for d in fragile.donors if d.name == holder_of_exchange(fragile))
    wait_for(lambda: fragile.status(victim)["exchanges"]["tokens"] > 20, "tokens are coming")
    fragile.kill(victim)
    answer = asked.answer()
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 150
    assert sum(tokens_of_the_latest(fragile)) == 150, "resumed, and not begun again"


def test_a_frozen_donor_is_not_waited_for(fragile: Network) -> None:
    workers = [w.pid for d in fragile.donors for w in workers_of(d)]
    with frozen(*workers):
        asked = Asked(fragile.api, max_tokens=5)
        wait_for(lambda: holder_of_exchange(fragile), "a donor has the request")
        victim = next(d for d in fragile.donors if d.name == holder_of_exchange(fragile))
        other = next(d for d in fragile.donors if d is not victim)
        with frozen(victim.process.pid):
            for worker in workers_of(other):
                worker.resume()
            answer = asked.answer()
    assert answer.status_code == 200, answer.text
    assert fragile.asker is not None
    given_up, answered = fragile.status(fragile.asker)["requests"][-1]["attempts"]
    # An idle donor was asked too, unless this peer did not know yet that it was idle.
    if answered["why"]["rule"] == "hedge":
        assert given_up["outcome"] == "outraced"
    else:
        assert given_up["outcome"] == "donor_silent"
        assert given_up["total_s"] >= IDLE_TIMEOUT_S, "silence is borne so long"
    assert answered["outcome"] == "finished"


def test_a_crashed_worker_is_restarted_and_nobody_notices(fragile: Network) -> None:
    asked = Asked(fragile.api, max_tokens=100)
    wait_for(lambda: holder_of_exchange(fragile), "a donor has the request")
    victim = next(d for d in fragile.donors if d.name == holder_of_exchange(fragile))
    wait_for(lambda: fragile.status(victim)["exchanges"]["tokens"] > 5, "tokens are coming")
    for worker in workers_of(victim):
        worker.kill()
    answer = asked.answer()
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 100
    wait_for(lambda: fragile.status(victim)["models"][0]["restarts"] == 1, "the worker is back")


def test_no_peer_wrote_the_prompt_anywhere(fragile: Network) -> None:
    assert Asked(fragile.api, max_tokens=5).answer().status_code == 200
    assert fragile.asker is not None
    assert "attempt request=" in fragile.asker.output
    status = json.dumps(fragile.status(fragile.asker))
    assert '"why": {"rule": ' in status
    metrics = httpx.get(fragile.api.replace("/v1", "/metrics")).text
    assert "tokenplace_attempts_total" in metrics
    assert "quicksilver" not in status + metrics
    for peer in fragile.group.peers:
        for path in peer.home.rglob("*"):
            if path.is_file():
                assert b"quicksilver" not in path.read_bytes(), f"the prompt is in {path}"
