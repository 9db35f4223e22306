"""Which donors may write the tool calls that a program carries out. Start at `Trust`. Pure.

An agent executes what a donor wrote, so by default only the user's own engine and the peers that
the user named answer a request with tools (docs/threats.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import base58

# An identity multihash of an Ed25519 public key in libp2p's protobuf (libp2p's peer-ids spec).
_ED25519_ID: Final = bytes.fromhex("002408011220")
_KEY_BYTES: Final = 32
_PEER_ID: Final = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}")


class ToolsFrom(StrEnum):
    """Whose tool calls the user wants: of trusted donors, or of anybody."""

    TRUSTED = "trusted"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Trust:
    """What the user has said.

    peers: peer id → the name that the user gave it, maybe empty. flags: what a command needs to
    change this, beside its own words; a hint that leaves it out would mend another peer's.
    """

    peers: Mapping[str, str] = field(default_factory=dict)
    tools_from: ToolsFrom = ToolsFrom.TRUSTED
    flags: str = ""

    def command(self, words: str) -> str:
        """A command line that changes this, for a hint."""
        return f"`tokenplace peer trust {words}{self.flags}`"


NO_TRUST: Final = Trust()


def is_peer_id(text: str) -> bool:
    """Is it the peer id of an Ed25519 key, as all peers here have?"""
    if not _PEER_ID.fullmatch(text):
        return False
    id_bytes = base58.b58decode(text)
    return id_bytes.startswith(_ED25519_ID) and len(id_bytes) == len(_ED25519_ID) + _KEY_BYTES
