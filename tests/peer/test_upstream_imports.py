from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from tests.peer.hosts import can_echo, open_asking_host, open_echo_host
from tokenplace.errors import ConfigError
from tokenplace.peer.upstream_imports import LIBP2P_VERSION, UNUSED_PACKAGES, check_version


def run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    return result.stdout


def test_the_package_alone_does_not_load_libp2p() -> None:
    assert (
        run_python("import sys, tokenplace.peer.streams; print('libp2p' in sys.modules)")
        == "False\n"
    )


def test_libp2p_is_loaded_without_packages_that_nobody_uses() -> None:
    loaded = run_python(
        "import sys, tokenplace.peer.host, tokenplace.dht.kad\n"
        f"print([name for name in {UNUSED_PACKAGES} if name in sys.modules])"
    )
    assert loaded == "[]\n"


def test_stock_loads_them_all() -> None:
    code = f"import sys, libp2p; print([name for name in {UNUSED_PACKAGES} if name in sys.modules])"
    assert run_stock(code) == f"{list(UNUSED_PACKAGES)}\n"


def run_stock(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_such_a_package_is_the_real_one_for_everybody_else() -> None:
    assert (
        run_python("import tokenplace.peer.host, httpx; print(httpx.Client().is_closed)")
        == "False\n"
    )


def test_a_stubbed_feature_says_why_it_does_not_work() -> None:
    code = (
        "import tokenplace.peer.host\n"
        "from libp2p.discovery.mdns import mdns\n"
        "try: mdns.Zeroconf()\n"
        "except NotImplementedError as error: print(error)"
    )
    assert run_python(code) == "tokenplace does not load zeroconf\n"


def test_another_release_is_refused_with_what_to_check() -> None:
    check_version(LIBP2P_VERSION)
    with pytest.raises(ConfigError) as caught:
        check_version("0.9.0")
    for what in ("libp2p==0.8.1", "tests/peer/test_upstream_*.py", "tests/dht", "docs/design.md"):
        assert what in caught.value.user_text


async def test_libp2p_neither_logs_nor_touches_the_root_logger(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handlers = list(logging.getLogger().handlers)
    async with open_echo_host() as host, open_asking_host() as asker:
        assert await can_echo(asker, host.peer_id, host.addrs())
    assert logging.getLogger().handlers == handlers
    assert [record for record in caplog.records if record.name.startswith(("libp2p", "root"))] == []


def test_stock_installs_a_handler_on_the_root_logger() -> None:
    code = """
import logging, trio, libp2p
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

async def main():
    alice, bob = libp2p.new_host(), libp2p.new_host()
    async with alice.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]), bob.run([]):
        await bob.connect(info_from_p2p_addr(alice.get_addrs()[0]))
        await bob.close()
        await alice.close()

trio.run(main)
print(len(logging.getLogger().handlers))
"""
    assert run_stock(code) == "1\n"
