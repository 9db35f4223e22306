"""Imports run one way (docs/architecture.md): a part sees only the parts below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "tokenplace"
WORDS = {"generation", "operations", "features", "errors", "defaults"}
BASE = WORDS | {"text", "sealing", "models"}
ALLOWED: dict[str, set[str]] = {
    "generation": set(),
    "operations": {"generation"},
    "features": set(),
    "errors": set(),
    "defaults": set(),
    "settings": {"defaults", "errors"},
    "text": WORDS,
    "sealing": WORDS,
    "models": WORDS,
    "engine": WORDS | {"models"},
    "peer": BASE,
    "dht": BASE | {"peer"},
    "router": BASE | {"peer", "dht"},
    "api_shim": BASE | {"router"},
    "node": BASE | {"peer", "dht", "router", "api_shim", "engine", "settings"},
    "cli": BASE | {"node", "settings"},
    "__main__": {"cli"},
}
ONLY_IN = {
    "libp2p": {"peer", "dht"},
    "multiaddr": {"peer", "dht"},
    "gguf": {"models/gguf_child.py"},
    "llama_cpp": {"engine/llama.py", "engine/llama_model.py", "engine/llama_embed.py"},
    "llguidance": {"engine/grammar.py"},
    "fastapi": {"api_shim"},
    "hypercorn": {"api_shim"},
    "prometheus_client": {"api_shim"},
    "typer": {"cli"},
    "rich": {"cli"},
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imports_of(path: Path) -> list[str]:
    """Dotted names of every module that a file imports, inside functions too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_is_below_it(path: Path) -> None:
    part = part_of(path)
    for name in imports_of(path):
        root, *rest = name.split(".")
        if root == "tokenplace" and rest and rest[0] in ALLOWED:
            assert rest[0] == part or rest[0] in ALLOWED[part], f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_library_is_seen_only_at_its_seam(path: Path) -> None:
    places = {part_of(path), str(path.relative_to(PACKAGE))}
    for name in imports_of(path):
        allowed = ONLY_IN.get(name.split(".")[0])
        assert allowed is None or allowed & places, f"{path} imports {name}"


def test_every_part_has_its_place() -> None:
    assert {part_of(path) for path in MODULES} == set(ALLOWED)
