"""The local API's doors as a person opens them: keys, Unix socket; and no control verb on them."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.api_shim.serving import CHAT, FakeCatalog
from tests.fakes import EchoEngine
from tokenplace.api_shim.app import create_app
from tokenplace.errors import ConfigError
from tokenplace.node.control import create_control_app
from tokenplace.node.doors import access_of, open_doors
from tokenplace.settings import Settings

ALICE = "alices-key-0123456789abcdef"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.touch(0o600)
    path.write_text(ALICE)
    return path


async def test_the_unix_socket_needs_no_key_and_is_private(tmp_path: Path, key_file: Path) -> None:
    path = tmp_path / "api.sock"
    settings = Settings(tmp_path, api_port=0, api_key_file=key_file, api_socket=path)
    said: list[str] = []
    engine = EchoEngine()
    app = create_app(engine, FakeCatalog(), access=access_of(settings))
    async with trio.open_nursery() as nursery:
        url = await open_doors(app, settings, nursery, said.append)
        assert {f"API: {url}", f"API: unix socket {path}"} <= set(said)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport) as client:
            inside = await client.post("http://peer/v1/chat/completions", json=CHAT)
        async with httpx.AsyncClient() as client:
            outside = await client.post(f"{url}/chat/completions", json=CHAT)
            shown = {"authorization": f"Bearer {ALICE}"}
            keyed = await client.post(f"{url}/chat/completions", json=CHAT, headers=shown)
        assert (inside.status_code, outside.status_code, keyed.status_code) == (200, 401, 200)
        assert len(engine.requests) == 2
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_other_machines_are_named_with_a_warning(tmp_path: Path, key_file: Path) -> None:
    settings = Settings(tmp_path, api_port=0, api_key_file=key_file, api_host="0.0.0.0")
    said: list[str] = []
    async with trio.open_nursery() as nursery:
        await open_doors(create_app(EchoEngine(), FakeCatalog()), settings, nursery, said.append)
        nursery.cancel_scope.cancel()
    (line,) = (line for line in said if line.startswith("API for other machines: 0.0.0.0, port "))
    assert line.endswith(", not encrypted")


async def test_no_control_verb_is_served_over_tcp(tmp_path: Path) -> None:
    app = create_app(EchoEngine(), FakeCatalog())
    verbs = [route.path for route in create_control_app(dict).routes]  # type: ignore[attr-defined]
    assert "/status" in verbs
    async with trio.open_nursery() as nursery:
        url = await open_doors(app, Settings(tmp_path, api_port=0), nursery, lambda line: None)
        async with httpx.AsyncClient() as client:
            for path in verbs:
                for prefix in ("", "/v1", "/api/v1"):
                    for method in ("GET", "POST"):
                        where = f"{url.removesuffix('/v1')}{prefix}{path}"
                        answer = await client.request(method, where, json={})
                        assert answer.status_code == 404, (method, where)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"api_allow_origins": ("*",)}, "--api-allow-origin"),
        ({"api_allow_hosts": ("http://a",)}, "--api-allow-host"),
        ({"api_key_file": Path("/nowhere/keys")}, "/nowhere/keys"),
    ],
)
def test_what_cannot_be_is_said_at_the_start(
    wrong: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=reason):
        access_of(Settings(tmp_path, **wrong))
