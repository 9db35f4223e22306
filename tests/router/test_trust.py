"""What counts as a peer id, and which command a hint names."""

from __future__ import annotations

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dht.donating import identity_of
from tokenplace.router.trust import NO_TRUST, ToolsFrom, Trust, is_peer_id

ALICE = identity_of("alice").peer_id
RSA_ID = "QmcgpsyWgH8Y8ajJz1Cu72KnS5uo2Aa2LpzU7kinSupNKC"


@given(st.text(max_size=40))
def test_every_peer_here_has_a_peer_id(name: str) -> None:
    assert is_peer_id(identity_of(name).peer_id)


@pytest.mark.parametrize(
    "text",
    [
        *("", "self", RSA_ID, ALICE[:-1], ALICE + "1", ALICE + "\n", f"/p2p/{ALICE}"),
        *(ALICE.replace("K", "0"), ALICE.lower(), "z" * 52, "12D3KooW" + "z" * 44),
        base58.b58encode(b"\0\x24\x08\x01\x12\x21" + bytes(32)).decode(),
    ],
)
def test_what_is_no_peer_id(text: str) -> None:
    assert not is_peer_id(text)


@given(st.text(max_size=60))
def test_any_text_is_one_or_is_not(text: str) -> None:
    assert not is_peer_id(text)


def test_a_command_reaches_the_peer_that_it_shall_mend() -> None:
    assert NO_TRUST.tools_from is ToolsFrom.TRUSTED
    assert NO_TRUST.command("ID") == "`tokenplace peer trust ID`"
    assert Trust(flags=" --home /x").command("ID") == "`tokenplace peer trust ID --home /x`"
