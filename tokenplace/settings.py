"""What a person can set about a running peer. Start at `Settings`; `cli` fills it from flags,
environment and file.

Everything has a value that works: `tokenplace up` needs no settings at all.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokenplace import defaults
from tokenplace.errors import ConfigError


def default_home() -> Path:
    """Where this user's peer keeps its state: the platform's data folder."""
    import platformdirs  # here, because only a command that needs the home should pay for it

    return platformdirs.user_data_path("tokenplace", appauthor=False)


_NETWORK_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True)
class Settings:
    """One peer's settings.

    home: folder of all state; one running peer a home.
    donate: catalogue names, own table's names or GGUF paths to serve.
    bootstrap: multiaddrs to join through; empty means the home's or the packaged list.
    listen: multiaddrs to listen on; empty means the default when donating or serving, else none.
    serve: take part in the DHT and serve the directory even without donating.
    api_port: 0 picks a free one. has_api: whether the local API is served.
    allow_private: dial addresses of private networks that strangers name.
    n_threads: compute threads for all models together; None takes every core.
    n_ctx: tokens of context of each model; None leaves it to the model, at most
    `defaults.DEFAULT_N_CTX`.
    """

    home: Path
    network: str = defaults.NETWORK
    donate: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()
    serve: bool = False
    api_port: int = defaults.API_PORT
    has_api: bool = True
    allow_private: bool = False
    n_threads: int | None = None
    n_ctx: int | None = None

    def check(self) -> None:
        """Raises `ConfigError` for what no peer could run with."""
        if not _NETWORK_NAME.fullmatch(self.network):
            raise ConfigError(
                f"--network {self.network!r} is not the name of a network.",
                hint="Use 1 to 32 of a-z, 0-9 and '-'; the public network is called main.",
            )
        if not self.has_api and not self.is_serving:
            raise ConfigError(
                "With --no-api and nothing to serve there is nothing to do.",
                hint="Add --donate MODEL or --serve, or leave --no-api out.",
            )

    @property
    def is_serving(self) -> bool:
        """Does this peer listen for others?"""
        return bool(self.donate or self.serve or self.listen)

    @property
    def control_socket(self) -> Path:
        """The Unix socket through which `tokenplace peer status` talks to the running peer."""
        return self.home / "control.sock"

    @property
    def models_dir(self) -> Path:
        """Where model files are kept."""
        return models_dir_of(self.home)

    def threads_per_model(self) -> int:
        """Compute threads for each donated model: engines that share cores slow each other down."""
        n_threads = self.n_threads or os.cpu_count() or 1
        return max(1, n_threads // max(1, len(self.donate)))


def models_dir_of(home: Path) -> Path:
    """Where model files are kept: `TOKENPLACE_MODELS_DIR`, else inside the home."""
    return Path(os.environ.get("TOKENPLACE_MODELS_DIR") or home / "models").expanduser()
