"""A network of real peers on the lab's hosts. Start at `open_lab_network`.

Host 0 has the requester, whose app is outside; host 1 the bootstrap peer; each further one a donor.
All are ordinary peers, in processes of their own, but that the donors' model is the deterministic
engine: whoever writes an answer, whole or from its middle, writes the same.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from benchmarks.drills.app import Question
from benchmarks.drills.fake_peer import PROGRAM, ModelFile, write_model
from benchmarks.lab.lab import Lab, open_lab
from tokenplace.cli.processes import PeerGroup, PeerProcess, Status, is_offering, open_peers

REQUESTER: Final = 0
BOOTSTRAP: Final = 1
FIRST_DONOR: Final = 2
PORT: Final = 4010


@dataclass(frozen=True, slots=True)
class LabDonor:
    """A donor, and where it is."""

    host: int
    peer: PeerProcess
    peer_id: str


@dataclass
class LabNetwork:
    """Make one with `open_lab_network`."""

    lab: Lab
    group: PeerGroup
    model: ModelFile
    bootstrap: str
    donors: list[LabDonor] = field(default_factory=list)
    _requester: PeerProcess | None = None

    @property
    def requester(self) -> PeerProcess:
        """The peer that asks."""
        assert self._requester is not None, "started by `open_lab_network`"
        return self._requester

    @property
    def _api_socket(self) -> Path:
        # Unix sockets are reached from every network: links do what they do between peers alone.
        return self.group.folder / "api.sock"

    async def status(self) -> Status:
        """The requester's own."""
        return await self.requester.wait(lambda status: True)

    async def start_donor(self, host: int, *flags: str, name: str = "") -> LabDonor:
        """Start a donor on this host; inside the call it may take requests by its end."""
        peer = await self._start(
            host,
            name or f"donor-{host}",
            *("--model", str(self.model.path), "--listen", self._listen(host)),
            *("--bootstrap", self.bootstrap, *flags),
            program=PROGRAM,
        )
        status = await peer.wait(is_offering)
        donor = LabDonor(host, peer, status["peer_id"])
        self.donors.append(donor)
        return donor

    async def start_requester(self) -> None:
        """Start the peer that asks."""
        self._requester = await self._start(
            REQUESTER,
            "requester",
            *("--bootstrap", self.bootstrap, "--api-port", "0"),
            *("--api-socket", str(self._api_socket)),
        )

    async def wait_known(self) -> None:
        """Return once the requester knows all donors."""
        ids = {donor.peer_id for donor in self.donors}
        await self.requester.wait(lambda s: ids <= {donor["peer_id"] for donor in s["donors"]})

    async def start_bootstrap(self) -> None:
        """Start the peer through which the others find each other."""
        peer = await self._start(
            BOOTSTRAP, "bootstrap", "--serve", "--no-api", "--listen", self._listen(BOOTSTRAP)
        )
        status = await peer.wait(lambda s: s["addresses"])
        self.bootstrap = f"{self._listen(BOOTSTRAP)}/p2p/{status['peer_id']}"

    async def ask(self, question: Question) -> None:
        """Ask the requester, as an app does, and take all that comes."""
        await question.ask("http://localhost/v1", self._api_socket)

    async def _start(self, host: int, name: str, *flags: str, **options: Any) -> PeerProcess:
        prefix = self.lab.command(host, [])
        return await self.group.start(name, *flags, "--allow-private", prefix=prefix, **options)

    def _listen(self, host: int) -> str:
        return f"/ip4/{self.lab.ip(host)}/tcp/{PORT}"


@asynccontextmanager
async def open_lab_network(
    folder: Path, n_donors: int, seed: int = 0, flags: Sequence[str] = ()
) -> AsyncIterator[LabNetwork]:
    """A network whose requester knows all its donors; its links do nothing to packets yet.

    folder: an empty one with a short path, for everything the peers write. flags: of each donor, as
    `benchmarks.drills.fake_peer` takes them. Raises `LabFailed` and `PeerFailed`.
    """
    model = write_model(folder / "lab-model.gguf")
    async with (
        open_lab(FIRST_DONOR + n_donors, seed) as lab,
        open_peers(folder) as group,
    ):
        network = LabNetwork(lab, group, model, bootstrap="")
        await network.start_bootstrap()
        async with trio.open_nursery() as nursery:
            for host in range(FIRST_DONOR, FIRST_DONOR + n_donors):
                nursery.start_soon(partial(network.start_donor, host, *flags))
            nursery.start_soon(network.start_requester)
        network.donors.sort(key=lambda donor: donor.host)
        await network.wait_known()
        yield network
