"""`trust.json`: what is written is read, damage is named, nothing else may read it."""

from __future__ import annotations

import json
import shlex
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dht.donating import identity_of
from tokenplace import defaults
from tokenplace.errors import ConfigError
from tokenplace.node.trust_file import TrustFile, encode_trust, is_name, parse_trust
from tokenplace.router.trust import ToolsFrom, Trust
from tokenplace.settings import default_home

ALICE, BOB = identity_of("alice").peer_id, identity_of("bob").peer_id
peer_ids = st.text(max_size=5).map(lambda name: identity_of(name).peer_id)
trusts = st.builds(
    Trust,
    st.dictionaries(peer_ids, st.text(max_size=64).filter(is_name), max_size=5),
    st.sampled_from(ToolsFrom),
)


@given(trusts)
def test_what_is_written_is_read(trust: Trust) -> None:
    assert parse_trust(encode_trust(trust)) == trust


@given(st.binary(max_size=200))
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_trust(data)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 2}, "version 2"),
        ({"tools_from": "nobody"}, "tools_from"),
        ({"tools_from": []}, "tools_from"),
        ({"tools_from": None}, "tools_from"),
        ({"peers": []}, "peers"),
        ({"peers": {"alice": {"name": ""}}}, "no peer id"),
        ({"peers": {ALICE: "alice"}}, "no name"),
        ({"peers": {ALICE: {}}}, "no name"),
        ({"peers": {ALICE: {"name": "\x1b[2J"}}}, "not printable"),
        ({"peers": {ALICE: {"name": "x" * 65}}}, "not printable"),
    ],
)
def test_a_damaged_file_trusts_nobody(
    change: dict[str, object], problem: str, tmp_path: Path
) -> None:
    file = TrustFile(tmp_path)
    document = json.loads(encode_trust(Trust({ALICE: "laptop"}, ToolsFrom.ANY)))
    file.path.write_text(json.dumps(document | change))
    with pytest.raises(ConfigError, match=problem) as caught:
        file.read()
    assert str(file.path) in caught.value.detail
    with pytest.raises(ConfigError):
        file.add(BOB)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = TrustFile(tmp_path)
    file.path.write_bytes(encode_trust(Trust()) + b" " * defaults.MAX_TRUST_BYTES)
    with pytest.raises(ConfigError, match="larger than"):
        file.read()


def test_peers_are_trusted_renamed_and_no_longer_trusted(tmp_path: Path) -> None:
    file = TrustFile(tmp_path / "home")
    assert file.read().peers == {}
    file.add(ALICE, "laptop")
    file.add(BOB)
    file.add(ALICE)
    assert file.read().peers == {ALICE: "laptop", BOB: ""}
    file.add(ALICE, "old laptop")
    file.set_tools_from("any")
    file.remove(BOB)
    assert (file.read().peers, file.read().tools_from) == ({ALICE: "old laptop"}, ToolsFrom.ANY)
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.path.parent.iterdir()] == ["trust.json"]


def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    file = TrustFile(tmp_path)
    file.add(ALICE)
    with pytest.raises(ConfigError, match="no peer id"):
        file.add("alice")
    with pytest.raises(ConfigError, match="cannot be called"):
        file.add(BOB, "two\nlines")
    with pytest.raises(ConfigError, match="not among the trusted"):
        file.remove(BOB)
    with pytest.raises(ConfigError, match="cannot be taken from"):
        file.set_tools_from("friends")
    assert file.read().peers == {ALICE: ""}


def test_a_full_file_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "MAX_TRUSTED_PEERS", 1)
    file = TrustFile(tmp_path)
    file.add(ALICE)
    with pytest.raises(ConfigError, match="full"):
        file.add(BOB)
    file.add(ALICE, "still fits")


def test_a_full_file_is_still_read(tmp_path: Path) -> None:
    widest = "\N{GRINNING FACE}" * defaults.MAX_TRUSTED_NAME_CHARS
    peers = {identity_of(str(n)).peer_id: widest for n in range(defaults.MAX_TRUSTED_PEERS)}
    file = TrustFile(tmp_path)
    file.path.write_bytes(encode_trust(Trust(peers)))
    assert file.read().peers == peers


def test_changes_at_once_are_all_kept(tmp_path: Path) -> None:
    peers = [identity_of(str(n)).peer_id for n in range(12)]
    threads = [threading.Thread(target=TrustFile(tmp_path).add, args=(peer,)) for peer in peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(TrustFile(tmp_path).read().peers) == set(peers)


def test_a_hint_names_the_home_unless_it_is_the_usual_one(tmp_path: Path) -> None:
    home = tmp_path / "my home"
    assert TrustFile(home).read().flags == f" --home {shlex.quote(str(home))}"
    assert TrustFile(default_home()).read().flags == ""
