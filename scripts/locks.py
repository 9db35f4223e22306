"""Reading `requirements/*.lock`, as `make lock` writes them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==")


def parse_lock(text: str) -> dict[str, str]:
    """Project name → its requirement, hashes included. Raises `ValueError` for anything else."""
    requirements: dict[str, str] = {}
    for block in re.split(r"\n(?=\S)", text.strip()):
        found = _NAME.match(block)
        if found is None or "--hash=sha256:" not in block:
            raise ValueError(f"not a pinned requirement with a hash: {block[:60]!r}")
        # One project may stand there twice, with other versions for other Pythons: they belong
        # together.
        other = requirements.get(found[1])
        requirements[found[1]] = f"{other}\n{block}" if other else block
    return requirements


def hashes_of(requirement: str) -> set[str]:
    """Every sha256 that the requirement allows."""
    return set(re.findall(r"--hash=sha256:([0-9a-f]{64})", requirement))


def lock_text(requirements: Iterable[str]) -> str:
    """The text of a lock file of these requirements."""
    return "".join(f"{requirement}\n" for requirement in requirements)


def covers(installed: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Is everything wanted among what was installed, exactly?"""
    return wanted.items() <= installed.items()
