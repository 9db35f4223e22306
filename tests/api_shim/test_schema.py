"""A little of what `python -m benchmarks.schema` tries with thousands of cases."""

from __future__ import annotations

import pytest

from benchmarks.schema import try_document

pytestmark = pytest.mark.slow


async def test_the_api_does_what_its_document_says() -> None:
    tried = await try_document(20, phases=["fuzzing"], paths="^/v1/|^/[a-z.]+$")
    assert tried.is_right, tried.output[-6000:]
    assert tried.n_cases > 80
