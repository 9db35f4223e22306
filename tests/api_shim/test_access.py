"""Who may use the API over TCP: names of hosts, web origins, API keys, and what CORS says."""

from __future__ import annotations

import re
import socket
import string

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.api_shim.serving import CHAT, http_client, port_of, serving
from tests.fakes import EchoEngine
from tokenplace.api_shim.access import Access, ApiKeys, parse_host, parse_origin
from tokenplace.api_shim.app import OPEN_PATHS
from tokenplace.errors import ConfigError

PATH = "/v1/chat/completions"
ALICE = "alices-key-0123456789abcdef"
BOB = "bobs-key-0123456789abcdef"
KEYED = Access(keys=ApiKeys.of((ALICE, BOB)), open_paths=OPEN_PATHS)
CHAT_PAGE = "https://chat.example"
WITH_PAGE = Access(origins=frozenset({CHAT_PAGE}))


def code_of(
    access: Access, *, method: str = "GET", path: str = "/v1/models", **headers: str
) -> str:
    """The code with which a request is refused at 192.168.1.7:5010; empty: it is not."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named.setdefault("host", "127.0.0.1:5010")
    refusal = access.refuse(named, method, path, "192.168.1.7", 5010)
    return refusal.code or "" if refusal else ""


# ---------------------------------------------------------------- hosts


@pytest.mark.parametrize("host", ["192.168.1.7:5010", "127.0.0.1:5010", "localhost:5010"])
def test_the_address_itself_is_an_own_host(host: str) -> None:
    assert code_of(Access(), host=host) == ""


@pytest.mark.parametrize(
    "host",
    ["192.168.1.8:5010", "192.168.1.7", "192.168.1.7:80", "llm.example:5010", "", "0.0.0.0:5010"],
)
def test_other_hosts_are_not(host: str) -> None:
    assert code_of(Access(), host=host) == "host_not_allowed"


@pytest.mark.parametrize(
    ("allowed", "host", "code"),
    [
        ("llm.example", "llm.example:5010", ""),
        ("llm.example", "LLM.example", ""),
        ("llm.example", "llm.example:443", "host_not_allowed"),
        ("llm.example:443", "llm.example:443", ""),
        ("llm.example:443", "llm.example", "host_not_allowed"),
        ("llm.example:443", "llm.example:5010", "host_not_allowed"),
        ("llm.example", "evil.llm.example:5010", "host_not_allowed"),
        ("[fd00::7]", "[fd00::7]:5010", ""),
    ],
)
def test_hosts_that_the_user_names(allowed: str, host: str, code: str) -> None:
    assert code_of(Access(hosts=frozenset({parse_host(allowed)})), host=host) == code


def test_a_page_behind_the_users_own_proxy_is_our_own() -> None:
    access = Access(hosts=frozenset({"llm.example"}))
    of_page = {"origin": "https://llm.example", "sec_fetch_site": "same-origin"}
    assert code_of(access, host="llm.example", **of_page) == ""
    assert code_of(access, host="127.0.0.1:5010", **of_page) == "origin_not_allowed"


@pytest.mark.parametrize(
    "text", ["", "*", "http://llm.example", "llm.example/", "a b", "a:port", "-"]
)
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(ConfigError, match="--api-allow-host"):
        parse_host(text)


# ---------------------------------------------------------------- origins


@pytest.mark.parametrize(
    "origin",
    [
        "app://obsidian.md",
        "vscode-webview://0abc123def",
        "APP://-",
        CHAT_PAGE,
        "https://CHAT.example",
    ],
)
def test_desktop_programs_and_named_pages_may_call(origin: str) -> None:
    assert code_of(WITH_PAGE, origin=origin, sec_fetch_site="cross-site") == ""


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "file://",
        "app:",
        "app://",
        "http://chat.example",
        "https://chat.example:8443",
        "https://evil.chat.example",
        "https://chat.example.evil.example",
        "https://chat.example, https://evil.example",
        "https://evil.example/#https://chat.example",
        "http://localhost:3000",
        "http://127.0.0.1",
        "tauri://localhost",
        "capacitor://localhost",
        "chrome-extension://abcdefghijklmnop",
        "moz-extension://abcdefgh",
        "https://app",
        "xapp://x",
        "*",
    ],
)
def test_all_other_origins_may_not(origin: str) -> None:
    assert code_of(WITH_PAGE, origin=origin) == "origin_not_allowed"


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://Chat.example/", "https://chat.example"),
        ("https://chat.example:443", "https://chat.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://localhost:80", "http://localhost"),
        ("tauri://localhost", "tauri://localhost"),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
    ],
)
def test_origins_as_browsers_write_them(text: str, origin: str) -> None:
    assert parse_origin(text) == origin


@pytest.mark.parametrize(
    "text", ["*", "null", "", "chat.example", "https://*", "https://a/b", "https://a, https://b"]
)
def test_what_is_no_origin(text: str) -> None:
    with pytest.raises(ConfigError, match="--api-allow-origin"):
        parse_origin(text)


@given(st.text(string.printable, max_size=40), st.sampled_from(["", "app", "null", CHAT_PAGE]))
def test_only_what_was_named_passes(text: str, before: str) -> None:
    origin = before + text
    is_desktop = re.fullmatch(r"(?i)app://[^\s/@?#,*\\]+", origin) is not None
    is_named = origin.lower() in {CHAT_PAGE, "http://127.0.0.1:5010", ""}
    assert (code_of(WITH_PAGE, origin=origin) == "") == (is_desktop or is_named)


FOLLOWED = {
    "sec_fetch_site": "cross-site",
    "sec_fetch_mode": "navigate",
    "sec_fetch_dest": "document",
}


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({}, ""),
        ({"path": "/v1/models"}, "origin_not_allowed"),
        ({"path": "/page.js"}, "origin_not_allowed"),
        ({"method": "POST"}, "origin_not_allowed"),
        ({"sec_fetch_dest": "iframe"}, "origin_not_allowed"),
        ({"sec_fetch_mode": "no-cors"}, "origin_not_allowed"),
        ({"origin": "https://evil.example"}, "origin_not_allowed"),
        ({"host": "evil.example:5010"}, "host_not_allowed"),
    ],
)
def test_a_link_leads_to_the_page_alone(changed: dict[str, str], code: str) -> None:
    assert code_of(Access(), **{"path": "/", **FOLLOWED, **changed}) == code


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize(
    "authorization", [f"Bearer {ALICE}", f"bearer {BOB}", f"Bearer  {ALICE}", f"BEARER {ALICE} "]
)
def test_each_key_opens(authorization: str) -> None:
    assert code_of(KEYED, authorization=authorization) == ""


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        ALICE,
        f"Basic {ALICE}",
        f"Bearer {ALICE}x",
        f"Bearer {ALICE[:-1]}",
        f"Bearer {ALICE.upper()}",
        f"Bearer {ALICE},{BOB}",
        f"Bearer {ALICE} {BOB}",
        "Bearer sk-anything",
        "Bearer \xe9",
        "Bearer \u20ac",
    ],
)
def test_nothing_else_does(authorization: str) -> None:
    assert code_of(KEYED, authorization=authorization) == "invalid_api_key"


@given(st.text(max_size=40))
def test_no_other_text_is_a_key(text: str) -> None:
    assert code_of(KEYED, authorization=f"Bearer {text}") == "invalid_api_key"


def test_without_keys_none_is_asked_for() -> None:
    assert code_of(Access()) == code_of(Access(), authorization="Bearer anything") == ""


def test_the_page_and_the_sign_of_life_need_no_key() -> None:
    for path in OPEN_PATHS:
        assert code_of(KEYED, path=path) == ""
        assert code_of(KEYED, path=path, method="POST") == "invalid_api_key"
    assert {"/", "/page.js", "/v1/health", "/api/v1/health"} <= OPEN_PATHS
    for path in ("/v1/models", "/v1/health/", "/V1/health", "//", "/metrics", "/openapi.json"):
        assert code_of(KEYED, path=path) == "invalid_api_key"


def test_keys_are_not_shown() -> None:
    assert ALICE not in repr(KEYED)


async def test_401_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = EchoEngine()
    async with serving(engine, access=KEYED) as address, http_client(address) as client:
        missing = await client.post(PATH, json=CHAT)
        wrong = await client.post(PATH, json=CHAT, headers={"authorization": "Bearer sk-wrong"})
        n_reached = len(engine.requests)
        right = await client.post(PATH, json=CHAT, headers={"authorization": f"Bearer {ALICE}"})
        alive = await client.get("/v1/health")
        page = await client.get("/")
    assert n_reached == 0
    for answer in (missing, wrong):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "sk-wrong" not in wrong.text
    assert (right.status_code, alive.status_code, page.status_code) == (200, 200, 200)


# ---------------------------------------------------------------- CORS

PREFLIGHT = {
    "origin": CHAT_PAGE,
    "sec-fetch-site": "cross-site",
    "sec-fetch-mode": "cors",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


def cors_of(answer: httpx.Response) -> dict[str, str]:
    return {name: v for name, v in answer.headers.items() if name.startswith("access-control")}


async def test_a_named_page_may_ask_and_read() -> None:
    access = Access(origins=WITH_PAGE.origins, keys=KEYED.keys)
    engine = EchoEngine()
    async with serving(engine, access=access) as address, http_client(address) as client:
        before = await client.options(PATH, headers=PREFLIGHT)
        shown = {"origin": CHAT_PAGE, "sec-fetch-site": "cross-site"}
        unknown = await client.post(PATH, json=CHAT, headers=shown)
        shown["authorization"] = f"Bearer {ALICE}"
        wrong = await client.post(PATH, json={"model": 5}, headers=shown)
        right = await client.post(PATH, json=CHAT, headers=shown)
        streamed = await client.post(PATH, json={**CHAT, "stream": True}, headers=shown)
    assert before.status_code == 204
    assert not before.content
    assert cors_of(before) == {
        "access-control-allow-origin": CHAT_PAGE,
        "access-control-allow-methods": "GET, HEAD, POST",
        "access-control-allow-headers": "authorization,content-type,x-stainless-lang",
        "access-control-max-age": "600",
        "access-control-expose-headers": before.headers["access-control-expose-headers"],
    }
    assert [a.status_code for a in (unknown, wrong, right, streamed)] == [401, 400, 200, 200]
    for answer in (before, unknown, wrong, right, streamed):
        assert answer.headers["access-control-allow-origin"] == CHAT_PAGE
        assert answer.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in answer.headers
        assert "x-tokenplace-accepted-by" in answer.headers["access-control-expose-headers"]
    assert len(engine.requests) == 2


async def test_whoever_is_not_named_is_told_nothing() -> None:
    async with serving(access=WITH_PAGE) as address, http_client(address) as client:
        for headers in (
            {**PREFLIGHT, "origin": "https://evil.example"},
            {**PREFLIGHT, "origin": "null"},
            {**PREFLIGHT, "host": "evil.example"},
        ):
            answer = await client.options(PATH, headers=headers)
            assert answer.status_code == 403
        assert cors_of(answer)["access-control-allow-origin"] == CHAT_PAGE  # of the last alone
        no_page = await client.get("/v1/models")
        own = await client.get("/v1/models", headers={"origin": address})
    assert cors_of(no_page) == cors_of(own) == {}


async def test_headers_that_are_none_are_not_repeated() -> None:
    async with serving(access=WITH_PAGE) as address, http_client(address) as client:
        for asked in ("*, a b", "a;b", "", "a,,b", "x" * 9 + "(", "\xe9"):
            headers = {**PREFLIGHT, "access-control-request-headers": asked}
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            answer = await client.options(PATH, headers=raw)
            assert answer.status_code == 204
            assert "access-control-allow-headers" not in answer.headers


async def test_private_network_access_is_granted_to_who_may_call() -> None:
    asks = {**PREFLIGHT, "access-control-request-private-network": "true"}
    async with serving(access=WITH_PAGE) as address, http_client(address) as client:
        granted = await client.options(PATH, headers=asks)
        refused = await client.options(PATH, headers={**asks, "origin": "https://evil.example"})
        unasked = await client.options(PATH, headers=PREFLIGHT)
    name = "access-control-allow-private-network"
    assert granted.headers[name] == "true"
    assert name not in refused.headers
    assert name not in unasked.headers


# ---------------------------------------------------------------- addresses


def own_address() -> str | None:
    """An address of this machine that is not loopback, if there is one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return None if address.startswith("127.") else address


@pytest.mark.parametrize("which", ["0.0.0.0", "::", "own"])
async def test_other_addresses_are_served_when_told_so(which: str) -> None:
    other = own_address()
    if other is None:
        pytest.skip("this machine has loopback alone")
    async with serving(address=other if which == "own" else which) as address:
        port = port_of(address)
        for host in ("127.0.0.1", other):
            async with http_client(f"http://{host}:{port}") as client:
                assert (await client.get("/v1/models")).status_code == 200
                strange = await client.get("/v1/models", headers={"host": f"evil.example:{port}"})
                assert strange.status_code == 403


async def test_other_addresses_are_not_served_otherwise() -> None:
    other = own_address()
    if other is None:
        pytest.skip("this machine has loopback alone")
    async with serving() as address:
        with pytest.raises(OSError):  # noqa: PT011  # refused, or unreachable
            await trio.open_tcp_stream(other, port_of(address))
