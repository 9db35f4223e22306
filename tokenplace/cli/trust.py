"""`tokenplace peer trust`: whose tool calls this user's programs may carry out.

It changes a file in the home, which a running peer reads anew for every request with
tools.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenplace.cli.output import fail, say
from tokenplace.node.trust_file import TrustFile


def edit_trust(
    home: Path,
    peer: str | None,
    *,
    name: str | None,
    remove: bool,
    tools_from: str | None,
) -> None:
    """Trust a peer, or no longer; set whose tool calls are taken."""
    if peer is None and (remove or name is not None):
        fail("which peer?", "tokenplace peer trust PEER_ID")
    file = TrustFile(home)
    if tools_from is not None:
        file.set_tools_from(tools_from)
    if peer is not None:
        # What `peer invite` prints ends with the id.
        peer_id = peer.rpartition("/p2p/")[2]
        if remove:
            file.remove(peer_id)
        else:
            file.add(peer_id, name)
            say("it may answer requests with tools: your programs carry out what it writes")


def show_trust(home: Path) -> None:
    """Print whose tool calls are taken, and every trusted peer."""
    trust = TrustFile(home).read()
    for line in trust_lines(trust.tools_from, trust.peers):
        print(line)


def trust_lines(tools_from: str, peers: Mapping[str, str]) -> Iterator[str]:
    """The same for people: first whose tool calls are taken, then each trusted peer."""
    yield {
        "any": "from anybody, trusted or not",
        "trusted": "from this peer's own models and trusted donors only",
    }[tools_from]
    for peer_id, name in peers.items():
        yield f"{peer_id}  {name}".rstrip()
