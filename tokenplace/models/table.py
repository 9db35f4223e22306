"""The user's own models and aliases: `models.json` in the home. Start at `TableFile`.

`parse_table` and `encode_table` are pure. The file is small, so whoever needs it reads it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from tokenplace import defaults
from tokenplace.errors import ConfigError
from tokenplace.models.catalogue import catalogue_model
from tokenplace.models.syntax import is_alias, is_model_name, is_sha256, is_target
from tokenplace.models.user_file import UserFile, parse_document

FILE_NAME: Final = "models.json"
FORMAT_VERSION: Final = 1

OTHER_NAME: Final = "Give another name."
NAME_RULE: Final = (
    "A name is 1 to 64 characters of a-z, 0-9, '.', '_' and '-', begins with a letter or digit, "
    "and is not 'auto'."
)
ALIAS_RULE: Final = (
    "An alias is 1 to 128 letters, digits, '.', '_', '-', ':' and '/', and is not 'auto'."
)


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model whose file is on this machine.

    artifact: its sha256. template: hash of its chat template, empty when it has none
    (docs/protocol.md, section 2).
    """

    name: str
    path: Path
    artifact: str
    template: str
    size_bytes: int
    n_params: int


@dataclass(frozen=True, slots=True)
class Table:
    """What the user added: models by name, and alias → target."""

    models: Mapping[str, LocalModel] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)


NO_TABLE: Final = Table()


def parse_table(data: bytes) -> Table:
    """The table in a file's bytes. Raises `ValueError` that says what is wrong."""
    document = parse_document(data, FORMAT_VERSION)
    models = _section(document, "models")
    aliases = _section(document, "aliases")
    for alias, target in aliases.items():
        if not (is_alias(alias) and isinstance(target, str) and is_target(target)):
            raise ValueError(f"alias {alias!r} is no alias, or what it stands for is no name")
    return Table({name: _parse_model(name, entry) for name, entry in models.items()}, aliases)


def encode_table(table: Table) -> bytes:
    """The bytes of the file, for people too."""
    document = {
        "version": FORMAT_VERSION,
        "models": {
            name: {
                "path": str(model.path),
                "artifact": model.artifact,
                "template": model.template,
                "size_bytes": model.size_bytes,
                "n_params": model.n_params,
            }
            for name, model in table.models.items()
        },
        "aliases": dict(table.aliases),
    }
    return json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True).encode() + b"\n"


def _section(document: dict[str, Any], key: str) -> dict[str, Any]:
    section = document.get(key, {})
    if not isinstance(section, dict):
        raise ValueError(f"{key!r} is not an object")
    if len(section) > defaults.MAX_TABLE_ENTRIES:
        raise ValueError(f"more than {defaults.MAX_TABLE_ENTRIES} entries in {key!r}")
    return section


def _parse_model(name: str, entry: object) -> LocalModel:
    if not (is_model_name(name) and isinstance(entry, dict)):
        raise ValueError(f"model {name!r} is no model name, or not an object")
    texts = [entry.get(key) for key in ("path", "artifact", "template")]
    counts = [entry.get(key) for key in ("size_bytes", "n_params")]
    # `type(...) is`: a bool is no count.
    if not all(isinstance(text, str) for text in texts) or not all(
        type(count) is int and count >= 0 for count in counts
    ):
        raise ValueError(f"model {name!r} lacks a path, artifact, template, size_bytes or n_params")
    path, artifact, template = map(str, texts)
    if not is_sha256(artifact) or (template and not is_sha256(template)):
        raise ValueError(f"model {name!r} has an artifact or template that is not 64 hex digits")
    size_bytes, n_params = (count for count in counts if isinstance(count, int))
    return LocalModel(name, Path(path), artifact, template, size_bytes, n_params)


class TableFile:
    """`models.json` of one home."""

    def __init__(self, home: Path) -> None:
        self.path = home / FILE_NAME
        self._file = UserFile(
            self.path, parse_table, encode_table, NO_TABLE, defaults.MAX_TABLE_BYTES
        )

    def read(self) -> Table:
        """See `UserFile`."""
        return self._file.read()

    def put_model(self, model: LocalModel) -> None:
        """Add a model, or replace the one of that name. Raises `ConfigError` for a name it cannot
        have.
        """
        known = catalogue_model(model.name)
        if known is not None and known.artifact != model.artifact:
            raise ConfigError(f"{model.name} is another model, in the catalogue.", hint=OTHER_NAME)
        if not is_model_name(model.name):
            raise ConfigError(f"A model cannot be called {model.name!r}.", hint=NAME_RULE)
        self._change(lambda table: replace(table, models={**table.models, model.name: model}))

    def put_alias(self, alias: str, target: str) -> None:
        """Let `alias` stand for `auto`, a model's name, or a pin. Raises `ConfigError`."""
        if not is_alias(alias):
            raise ConfigError(f"An alias cannot be called {alias!r}.", hint=ALIAS_RULE)
        if not is_target(target):
            raise ConfigError(f"{target!r} is not a model's name.", hint=NAME_RULE)

        def put(table: Table) -> Table:
            if alias in table.models or catalogue_model(alias) is not None:
                raise ConfigError(f"{alias} is a model already.", hint=OTHER_NAME)
            return replace(table, aliases={**table.aliases, alias: target})

        self._change(put)

    def remove_alias(self, alias: str) -> None:
        """Forget an alias. Raises `ConfigError` when the user has none of that name."""

        def remove(table: Table) -> Table:
            if alias not in table.aliases:
                raise ConfigError(f"{alias} is not an alias of this user's own.")
            left = {name: target for name, target in table.aliases.items() if name != alias}
            return replace(table, aliases=left)

        self._change(remove)

    def _change(self, change: Callable[[Table], Table]) -> None:
        def changed(table: Table) -> Table:
            table = change(table)
            if max(len(table.models), len(table.aliases)) > defaults.MAX_TABLE_ENTRIES:
                raise ConfigError(f"{self.path} is full: remove an entry first.")
            return table

        self._file.change(changed)
