"""Signals end a command in order, and in any case."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from tokenplace.cli import stopping
from tokenplace.cli.stopping import until_signal

# A command whose winding up never ends.
STUBBORN = """
import trio
from tokenplace.cli import stopping
stopping.STOP_TIMEOUT_S = {timeout_s}

async def main():
    async with stopping.until_signal():
        try:
            print("running", flush=True)
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                print("winding up", flush=True)
                await trio.sleep_forever()

trio.run(main)
"""


@pytest.fixture
def _no_alarm() -> Iterator[None]:
    """The last resort would end the tests themselves."""
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.mark.usefixtures("_no_alarm")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_block_in_order(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    is_wound_up = False
    async with until_signal():
        try:
            os.kill(os.getpid(), number)
            await trio.sleep_forever()
        finally:
            is_wound_up = True
    assert is_wound_up
    assert capsys.readouterr().err == "stopping ...\n"
    assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= stopping.STOP_TIMEOUT_S < 5


@pytest.mark.usefixtures("_no_alarm")
async def test_what_is_around_the_inner_block_winds_up_uncancelled() -> None:
    async with until_signal() as stopping:
        with stopping.only_this():
            os.kill(os.getpid(), signal.SIGTERM)
            await trio.sleep_forever()
        await trio.sleep(0.01)  # would raise, were it cancelled
        assert stopping.is_stopping


async def test_a_block_that_ends_by_itself_leaves_nothing_behind() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    async with until_signal():
        assert signal.getsignal(signal.SIGTERM) is not handler
    assert signal.getsignal(signal.SIGTERM) is handler


def start_stubborn(timeout_s: float) -> subprocess.Popen[str]:
    """The stubborn command, already winding up."""
    command = subprocess.Popen(
        [sys.executable, "-c", STUBBORN.format(timeout_s=timeout_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    assert command.stdout.readline() == "running\n"
    command.send_signal(signal.SIGINT)
    assert command.stdout.readline() == "winding up\n"
    return command


def test_a_second_signal_ends_the_process_at_once() -> None:
    command = start_stubborn(timeout_s=600)
    command.send_signal(signal.SIGINT)
    assert command.communicate(timeout=60)[1] == "stopping ...\n"
    assert command.returncode == 1


def test_what_never_winds_up_is_ended_all_the_same() -> None:
    command = start_stubborn(timeout_s=0.1)
    command.communicate(timeout=60)
    assert command.returncode == -signal.SIGALRM
