"""tests/vectors/requests.json and refusals.json, as a second implementation would use them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.peer.write_vectors import plain
from tokenplace.errors import TokenplaceError, Unsupported
from tokenplace.peer.refusal import Refusal, decode_refusal
from tokenplace.peer.request_map import decode_request
from tokenplace.peer.wire import to_request
from tokenplace.sealing.answer import AnswerOpener, RefusalBytes, ReplySecrets

FOLDER = Path(__file__).resolve().parent.parent / "vectors"


def load(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())[name]


@pytest.mark.parametrize("vector", load("requests"), ids=lambda vector: vector["name"])
def test_requests(vector: dict[str, Any]) -> None:
    payload = bytes.fromhex(vector["payload"])
    if vector["expect"] == "success":
        fields = {"v": 1, **asdict(decode_request(payload))}
        assert plain(json_like(fields)) == vector["means"]
    elif vector["expect"] == "unsupported":
        request = decode_request(payload)  # its answer is sealed
        with pytest.raises(Unsupported):
            to_request(request, "")
    else:
        with pytest.raises(TokenplaceError) as refused:
            decode_request(payload)
        assert refused.value.code == vector["expect"]


def json_like(value: Any) -> Any:
    """Tuples as lists."""
    if isinstance(value, dict):
        return {key: json_like(inner) for key, inner in value.items()}
    return [json_like(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def read_refusal(answer: bytes) -> Refusal:
    opener = AnswerOpener(ReplySecrets.generate(), bytes(32))
    opener.receive_data(answer)
    opener.receive_eof()
    item = opener.next_item()
    assert isinstance(item, RefusalBytes)
    refusal = decode_refusal(item.payload)
    assert opener.next_item() is None
    return refusal


@pytest.mark.parametrize("vector", load("refusals"), ids=lambda vector: vector["name"])
def test_refusals(vector: dict[str, Any]) -> None:
    answer = bytes.fromhex(vector["answer"])
    if vector["expect"] != "success":
        with pytest.raises(TokenplaceError) as broken:
            read_refusal(answer)
        assert broken.value.code == vector["expect"]
        return
    refusal = read_refusal(answer)
    means = {"code": refusal.error.code, "keys": refusal.keys, "live": refusal.live}
    assert plain(means | {"retry_after_s": refusal.error.retry_after_s}) == vector["means"]
