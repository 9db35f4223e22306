"""One network for all who attack it: who is attacked must not slow other tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.hostile.bystanders import ask
from tests.e2e.network import Network, open_network


@pytest.fixture(scope="package")
def network(short_folder: Path, tiny_model: Path) -> Iterator[Network]:
    """A bootstrap peer, two donors that others reach, and a peer that asks."""
    folder = short_folder / "hostile"
    folder.mkdir()
    with open_network(folder, n_donors=2) as network:
        for donor in network.donors:
            network.run(donor.wait, lambda status: status["reachability"]["addresses"])
        ask(network.api)
        yield network
