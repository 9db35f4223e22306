"""Skips, with the reason, what needs a lab where there can be none."""

from __future__ import annotations

import pytest

from benchmarks.lab.lab import why_not


@pytest.fixture(scope="session")
def has_lab() -> None:
    """A test that uses this is run where network namespaces can be made."""
    if reason := why_not():
        pytest.skip(f"no lab: {reason}")
