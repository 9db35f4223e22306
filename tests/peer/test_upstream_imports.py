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
    assert "test_upstream_" in caught.value.user_text


async def test_libp2p_neither_logs_nor_touches_the_root_logger(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handlers = list(logging.getLogger().handlers)
    async with open_echo_host() as host, open_asking_host() as asker:
        assert await can_echo(asker, host.peer_id, host.addrs())
    assert logging.getLogger().handlers == handlers
    assert [record for record in caplog.records if record.name.startswith(("libp2p", "root"))] == []
