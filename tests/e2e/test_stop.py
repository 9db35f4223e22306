"""Donors that are told to stop with answers under way."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.network import MODEL, Network, frozen, open_network, wait_for, workers_of
from tests.e2e.test_failures import Asked, body, holder_of_exchange
from tokenplace.cli.processes import PeerProcess

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def donors(short_folder: Path, tiny_model: Path) -> Iterator[Network]:
    """Enough donors: each test stops one, and all but the last need another."""
    folder = short_folder / "stopping"
    folder.mkdir()
    with open_network(folder, n_donors=4) as network:
        yield network


class AskedRaw(Asked):
    """Without a chat template: its renderer may not take 2 s, and is frozen too."""

    def run(self) -> None:
        self.response = httpx.post(
            f"{self.api}/completions", json=question(self.max_tokens), timeout=120
        )


def question(max_tokens: int) -> dict[str, object]:
    return {"model": MODEL, "prompt": "One, two,", "max_tokens": max_tokens, "ignore_eos": True}


def begin_to_stop(network: Network, donor: PeerProcess) -> None:
    donor.process.send_signal(signal.SIGTERM)
    network.donors.remove(donor)
    wait_for(lambda: "stopping ..." in donor.output, "the donor is stopping")


def assert_ended_in_order(network: Network, donor: PeerProcess) -> None:
    assert network.run(donor.process.wait) == 0  # the last resort, after 4.8 s, is a signal
    assert "Traceback" not in donor.output


def test_an_answer_that_soon_ends_is_given_whole(donors: Network) -> None:
    ids = {d.name: donors.status(d)["peer_id"] for d in donors.donors}
    with frozen(*(w.pid for d in donors.donors for w in workers_of(d))):
        asked = AskedRaw(donors.api, max_tokens=1)
        wait_for(lambda: holder_of_exchange(donors), "a donor has the request")
        donor = next(d for d in donors.donors if d.name == holder_of_exchange(donors))
        begin_to_stop(donors, donor)
    answer = asked.answer()
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 1
    assert answer.headers["x-tokenplace-accepted-by"] == ids[donor.name]
    assert_ended_in_order(donors, donor)


class StoppedStream:
    """A streamed answer whose donor is told to stop at the first piece of text."""

    def __init__(self, network: Network, max_tokens: int) -> None:
        self.network = network
        self.max_tokens = max_tokens
        self.donor: PeerProcess | None = None
        self.lines: list[str] = []

    def read(self) -> None:
        url = f"{self.network.api}/chat/completions"
        asked = body(stream=True, max_tokens=self.max_tokens)
        with (
            httpx.Client(timeout=60) as client,
            client.stream("POST", url, json=asked) as response,
        ):
            donor = self.network.donor_of(response.headers["x-tokenplace-accepted-by"])
            for line in response.iter_lines():
                self.lines.append(line)
                if self.donor is None and '"content"' in line:
                    self.donor = donor
                    begin_to_stop(self.network, donor)


def test_a_long_answer_goes_on_at_another_donor(donors: Network) -> None:
    n_tokens = 600  # more than any donor gives while it is stopping
    stream = StoppedStream(donors, n_tokens)
    stream.read()
    assert "data: [DONE]" in stream.lines
    assert any(line.startswith(": continued on ") for line in stream.lines)
    assert stream.donor is not None
    assert_ended_in_order(donors, stream.donor)


def test_new_requests_go_to_another_donor(donors: Network) -> None:
    with frozen(*(w.pid for d in donors.donors for w in workers_of(d))):
        held = AskedRaw(donors.api, max_tokens=5)
        wait_for(lambda: holder_of_exchange(donors), "a donor has the request")
        donor = next(d for d in donors.donors if d.name == holder_of_exchange(donors))
        begin_to_stop(donors, donor)
        for worker in (w for d in donors.donors for w in workers_of(d)):
            worker.resume()
        others = {donors.status(d)["peer_id"] for d in donors.donors}
        for _ in range(3):
            answer = httpx.post(f"{donors.api}/completions", json=question(1), timeout=60)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-tokenplace-accepted-by"] in others
        # The one that it cannot finish is answered elsewhere too: nothing of it was handed on.
        answer = held.answer()
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-tokenplace-accepted-by"] in others
    assert_ended_in_order(donors, donor)


def test_with_nobody_else_a_long_answer_ends_with_a_reason(donors: Network) -> None:
    assert len(donors.donors) == 1
    stream = StoppedStream(donors, 1800)
    with pytest.raises(httpx.RemoteProtocolError):  # never a quiet end
        stream.read()
    events = [line.removeprefix("data: ") for line in stream.lines if line.startswith("data: ")]
    assert json.loads(events[-1])["error"]["code"] == "finishing"
    assert sum('"content"' in event for event in events) > 1, "it went on for a while"
    assert stream.donor is not None
    assert_ended_in_order(donors, stream.donor)
