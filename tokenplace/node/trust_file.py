"""Whom the user trusts with tools: `trust.json` in the home. Start at `TrustFile`.

`parse_trust` and `encode_trust` are pure. The file is small, so whoever needs it reads it again: a
running peer heeds a change at once. A damaged one trusts nobody.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tokenplace import defaults
from tokenplace.errors import ConfigError
from tokenplace.models.user_file import UserFile, parse_document
from tokenplace.router.trust import NO_TRUST, ToolsFrom, Trust, is_peer_id
from tokenplace.settings import default_home

FILE_NAME: Final = "trust.json"
FORMAT_VERSION: Final = 1
FILE_MODE: Final = 0o600  # whom one trusts is nobody else's business

NAME_RULE: Final = (
    f"A name is at most {defaults.MAX_TRUSTED_NAME_CHARS} printable characters, on one line."
)


def parse_trust(data: bytes) -> Trust:
    """The trust in a file's bytes. Raises `ValueError` that says what is wrong."""
    document = parse_document(data, FORMAT_VERSION)
    try:
        tools_from = ToolsFrom(str(document.get("tools_from")))
    except ValueError:
        raise ValueError(f"'tools_from' is none of {', '.join(ToolsFrom)}") from None
    peers = document.get("peers")
    if not isinstance(peers, dict):
        raise ValueError("'peers' is not an object")
    if len(peers) > defaults.MAX_TRUSTED_PEERS:
        raise ValueError(f"more than {defaults.MAX_TRUSTED_PEERS} entries in 'peers'")
    return Trust({peer_id: _parse_name(peer_id, peers[peer_id]) for peer_id in peers}, tools_from)


def encode_trust(trust: Trust) -> bytes:
    """The bytes of the file, for people too."""
    document = {
        "version": FORMAT_VERSION,
        "tools_from": trust.tools_from,
        "peers": {peer_id: {"name": name} for peer_id, name in trust.peers.items()},
    }
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def is_name(text: str) -> bool:
    """May a trusted peer be called so? Printable, for names reach terminals."""
    return len(text) <= defaults.MAX_TRUSTED_NAME_CHARS and text.isprintable()


def _parse_name(peer_id: str, entry: Any) -> str:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not is_peer_id(peer_id):
        raise ValueError(f"{peer_id!r} is no peer id")
    if not isinstance(name, str) or not is_name(name):
        raise ValueError(f"{peer_id} has no name, or one that is not printable")
    return name


class TrustFile:
    """`trust.json` of one home. Every method raises `ConfigError` if the file is damaged or cannot
    be read.
    """

    def __init__(self, home: Path) -> None:
        self.path = home / FILE_NAME
        self._file = UserFile(
            self.path, parse_trust, encode_trust, NO_TRUST, defaults.MAX_TRUST_BYTES, FILE_MODE
        )
        self._flags = "" if home == default_home() else f" --home {shlex.quote(str(home))}"

    def read(self) -> Trust:
        """The trust as it is now; of nobody when there is no file."""
        return replace(self._file.read(), flags=self._flags)

    def add(self, peer_id: str, name: str | None = None) -> None:
        """Trust a peer. name: what people call it; None keeps the one it has."""
        if not is_peer_id(peer_id):
            raise ConfigError(
                f"{peer_id[:128]!r} is no peer id.",
                hint="One begins with 12D3KooW: see peer status.",
            )
        if name is not None and not is_name(name):
            raise ConfigError(f"A peer cannot be called {name[:128]!r}.", hint=NAME_RULE)

        def put(trust: Trust) -> Trust:
            named = trust.peers.get(peer_id, "") if name is None else name
            return replace(trust, peers={**trust.peers, peer_id: named})

        self._change(put)

    def remove(self, peer_id: str) -> None:
        """Trust a peer no longer. Raises `ConfigError` when it was not trusted."""

        def drop(trust: Trust) -> Trust:
            if peer_id not in trust.peers:
                raise ConfigError(f"{peer_id[:128]!r} is not among the trusted peers.")
            return replace(
                trust, peers={one: trust.peers[one] for one in trust.peers if one != peer_id}
            )

        self._change(drop)

    def set_tools_from(self, word: str) -> None:
        """From now on take tool calls of trusted donors only, or of anybody: a `ToolsFrom`."""
        try:
            tools_from = ToolsFrom(word)
        except ValueError:
            raise ConfigError(
                f"Tool calls cannot be taken from {word[:64]!r}.",
                hint=f"Choose one of {', '.join(ToolsFrom)}.",
            ) from None
        self._change(lambda trust: replace(trust, tools_from=tools_from))

    def _change(self, change: Callable[[Trust], Trust]) -> None:
        def changed(trust: Trust) -> Trust:
            trust = change(trust)
            if len(trust.peers) > defaults.MAX_TRUSTED_PEERS:
                raise ConfigError(f"{self.path} is full: remove a peer first.")
            return trust

        self._file.change(changed)
