"""Every hostile input that a stranger can send to a peer that serves, layer by layer: the attacker
is cut off in its time, nobody else notices, and nothing is left behind.
"""

from __future__ import annotations

import pytest
import trio

from tests.e2e.hostile import frames, handshakes, questions, requests
from tests.e2e.hostile.attacks import Target
from tests.e2e.hostile.bystanders import ask
from tests.e2e.hostile.calm import Calm
from tests.e2e.hostile.siege import Attack, Outcome, besiege
from tests.e2e.network import Network

pytestmark = pytest.mark.slow

ATTACKS = handshakes.ATTACKS + frames.ATTACKS + questions.ATTACKS + requests.ATTACKS

each_attack = pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])


@pytest.fixture(scope="module")
def calm(network: Network) -> list[Calm]:
    """What everybody held before."""
    return Calm.of_all(network)


@pytest.fixture(scope="module")
def outcomes(network: Network, calm: list[Calm]) -> dict[str, Outcome]:
    """All attacks on one donor, once; nobody attacks the other."""
    victim, twin = (Target.of(network, donor) for donor in network.donors)
    return trio.run(besiege, victim, twin, ATTACKS)


@each_attack
def test_the_attacker_is_cut_off_in_time(attack: Attack, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[attack.name]
    assert not outcome.trouble
    assert outcome.ended is attack.ends


@each_attack
def test_bystanders_and_newcomers_are_served(attack: Attack, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[attack.name]
    assert outcome.is_served, outcome


def test_nothing_is_left_behind(
    network: Network, calm: list[Calm], outcomes: dict[str, Outcome]
) -> None:
    for before in calm:
        before.check_unharmed()
    ask(network.api)
