"""Bytes of a body to JSON, and JSON to what it asks."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.api_shim.serving import CHAT, http_client, serving
from tokenplace.api_shim.body import parse_json
from tokenplace.api_shim.refusal import Refused

HEADERS = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"", "line 1, column 1"),
        (b'{"a":\n  tru}', "line 2, column 3"),
        (b'{"a": 1,}', "line 1, column"),
        (b'{"a": 1} x', "line 1, column 10"),
        (b'{"a": "\xff"}', "byte 8 is not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "byte 8 is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "byte 1 is not UTF-8"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
        (b"[" * 1_000_000, "too deep"),
    ],
)
async def test_what_is_no_json_is_told_where(data: bytes, where: str) -> None:
    async with serving() as address, http_client(address) as client:
        answer = await client.post("/v1/chat/completions", content=data, headers=HEADERS)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_json", None)
    assert where in error["message"]


def is_read(data: bytes) -> bool:
    try:
        json.dumps(parse_json(data))
    except Refused:
        return False
    return True


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    expected = True
    try:
        json.loads(data.decode())
    except ValueError:
        expected = False
    if not any(word in data for word in (b"NaN", b"Infinity", b"\xef\xbb\xbf")):
        assert is_read(data) == expected


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse_json('\ufeff{"a": 1}'.encode()) == {"a": 1}


async def test_refusal_of_many_faults_is_quick_and_one_only() -> None:
    async with serving() as address, http_client(address) as client:
        faults = {f"unknown{number}": 1 for number in range(100_000)}
        unknown = await client.post("/v1/chat/completions", json={**CHAT, **faults})
        wrong = await client.post(
            "/v1/chat/completions", json={**CHAT, "messages": [1] * 1_000_000}
        )
    assert unknown.json()["error"]["param"] == "unknown0"
    assert wrong.status_code == 400
    assert len(wrong.content) < 500


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"4.0", int), (b"4e0", int), (b"-0.0", int), (b"4.5", float), (b"1e300", float)],
)
def test_a_whole_number_is_an_integer_however_it_is_written(data: bytes, kind: type) -> None:
    number = parse_json(data)
    assert type(number) is kind
    assert number == float(data)
