"""Apps that use a network while others attack it. Start at `bystander`, then `nobody_notices`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.e2e.network import MODEL, Network, wait_for

TIMEOUT_S = 30.0


class Bystander(threading.Thread):
    """Somebody else's app: reads a long streamed answer, until it has seen enough."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.n_pieces = 0
        self.trouble = ""
        self._is_enough = False
        self.start()

    def run(self) -> None:
        asked = {
            "model": MODEL,
            "prompt": "One, two,",
            "max_tokens": 3500,
            "ignore_eos": True,
            "stream": True,
        }
        url = f"{self.network.api}/completions"
        with (
            httpx.Client(timeout=TIMEOUT_S) as client,
            client.stream("POST", url, json=asked) as response,
        ):
            for line in response.iter_lines():
                self.n_pieces += '"text"' in line
                if '"error"' in line or "[DONE]" in line:
                    self.trouble = line
                if self._is_enough or self.trouble:
                    return

    def reads_on(self) -> None:
        """Fails unless more of the answer arrives."""
        seen = self.n_pieces
        wait_for(lambda: self.trouble or self.n_pieces > seen + 3, "a bystander's stream goes on")
        assert not self.trouble

    def leave(self) -> None:
        self._is_enough = True
        self.join(TIMEOUT_S)
        assert not self.is_alive(), "no byte came after the attack"


@contextmanager
def bystander(network: Network) -> Iterator[Bystander]:
    """An app whose answer is streaming when the block begins."""
    reader = Bystander(network)
    try:
        reader.reads_on()
        yield reader
    finally:
        reader.leave()


def ask(api: str, *first: str) -> None:
    """Fails unless a new request is answered. first: donors to be asked before all others."""
    asked: dict[str, object] = {"model": MODEL, "prompt": "One, two,", "max_tokens": 3}
    asked |= {"ignore_eos": True, "provider": {"order": first}}
    answer = httpx.post(f"{api}/completions", json=asked, timeout=TIMEOUT_S)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 3


def nobody_notices(network: Network, reader: Bystander) -> None:
    """Call it in the middle of an attack: one bystander reads on, then another one is answered."""
    reader.reads_on()
    reader.leave()
    ask(network.api)
