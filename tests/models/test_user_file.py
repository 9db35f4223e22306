"""A file that commands change, on a disk that takes no more."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenplace.errors import ConfigError
from tokenplace.models.user_file import UserFile

MAX_BYTES = 100


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file can get longer than so, as if there was no more room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_does_not_fit_the_disk_is_said_and_leaves_what_was_there(
    tmp_path: Path, full_disk: None
) -> None:
    file = UserFile(tmp_path / "words", bytes.decode, str.encode, "", 1000)
    file.change(lambda words: words + "short")
    with pytest.raises(ConfigError, match="words: File too large"):
        file.change(lambda words: words + 2 * MAX_BYTES * "long")
    assert file.read() == "short"
    assert [each.name for each in tmp_path.iterdir()] == ["words"]
