"""The config file: TOML, with a section a command. Start at `load_config`."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from tokenplace.errors import ConfigError

Section = dict[str, Any]


def load_config(path: Path, commands: TyperGroup) -> Section:
    """What `path` sets, by command and option; every name in it is one that there is.

    Raises `ConfigError` naming file and place, `FileNotFoundError`, or another `OSError`.
    """
    try:
        config = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: not valid TOML: {error}.", hint="Mend it, or move it away."
        ) from error
    try:
        _check_group(config, commands)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.detail}", hint=error.hint) from None
    return config


def _check_group(section: Section, group: TyperGroup, above: str = "") -> None:
    """See that `section` sets options of the group's commands; above: its own name and a dot."""
    for name, content in section.items():
        command, full_name = group.commands.get(name), f"{above}{name}"
        if command is None:
            known = ", ".join(f"{above}{name}" for name in group.commands)
            raise ConfigError(f"no command is called {full_name!r}.", hint=f"There are {known}.")
        if not isinstance(content, dict):
            raise ConfigError(
                f"{full_name} is not a section.", hint=f"Begin it with [{full_name}]."
            )
        if isinstance(command, TyperGroup):
            _check_group(content, command, f"{full_name}.")
        else:
            _check_options(content, command.params, full_name)


def _check_options(section: Section, params: Sequence[Any], command: str) -> None:
    options = {param.name: param for param in params}
    for name, value in section.items():
        if name not in options:
            shown = [n for n, param in options.items() if not getattr(param, "hidden", False)]
            raise ConfigError(
                f"{command} has no option {name!r}.", hint=f"There are {', '.join(shown)}."
            )
        is_list = bool(getattr(options[name], "multiple", False))
        if isinstance(value, list) != is_list:
            raise ConfigError(f"{command}: {name} must be {'a list' if is_list else 'one value'}.")
