"""What many tests of the engine begin with."""

from __future__ import annotations

import pytest

from tests.engine.parts import ArithmeticModel, runner_of
from tokenplace.engine.runner import Runner


@pytest.fixture
def model() -> ArithmeticModel:
    return ArithmeticModel()


@pytest.fixture
def runner(model: ArithmeticModel) -> Runner:
    return runner_of(model)
