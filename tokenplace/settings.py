"""What a person can set about a running peer. Start at `Settings`; `cli` fills it from flags,
environment and file.

Everything has a value that works: `tokenplace up` needs no settings at all.
"""

from __future__ import annotations

import ipaddress
import math
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
# As llama.cpp's --flash-attn and --cache-type-k/-v call them; of the latter those that keep
# answers as good.
FLASH_ATTENTION: Final = ("auto", "on", "off")
KV_TYPES: Final = ("f16", "q8_0", "q4_0")
AUTO: Final = "auto"
LOG_FORMATS: Final = ("text", "json")
_GB: Final = 10**9
_MAX_GPU_LAYERS: Final = 10_000  # people write 99 or 999 for all of them
_MAX_MEMORY_GB: Final = 1e6
_MAX_IDLE_MINUTES: Final = 1e6


@dataclass(frozen=True, slots=True)
class Settings:
    """One peer's settings.

    home: folder of all state; one running peer a home.
    donate: catalogue names, own table's names or GGUF paths to serve.
    bootstrap: multiaddrs to join through; empty means the home's or the packaged list.
    listen: multiaddrs to listen on; empty means the default when donating or serving, else none.
    serve: take part in the DHT and serve the directory even without donating.
    api_port: 0 picks a free one. has_api: whether the local API is served.
    api_host: an IP address to serve it on besides loopback; None: this machine alone.
    api_allow_hosts: names under which it may be called besides; see `api_shim.access.parse_host`.
    api_allow_origins: web origins that may call it; see `api_shim.access.parse_origin`.
    api_key_file: keys of which each request must show one; None: none is asked for.
    api_socket: a Unix socket to serve the API on besides.
    allow_private: dial addresses of private networks that strangers name.
    n_threads: compute threads for all models together; None takes every core.
    n_ctx: tokens of context of each request; None leaves it to the model, at most
    `defaults.DEFAULT_N_CTX`. n_slots: requests of each model that run at once; None leaves it to
    the engine.
    n_gpu_layers: layers that the GPU computes; None: all of them where llama.cpp was built for one.
    flash_attention, kv_type: see `FLASH_ATTENTION` and `KV_TYPES`.
    memory_gb: what all donated models together may take; None: `defaults.DONATED_MEMORY_SHARE` of
    this machine's.
    is_owner_first: this peer's own requests start before those of others that wait for its models.
    idle_unload_min: minutes without a request after which a model gives back its memory; 0: never.
    log_format: see `LOG_FORMATS`.
    """

    home: Path
    network: str = defaults.NETWORK
    donate: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()
    serve: bool = False
    api_port: int = defaults.API_PORT
    has_api: bool = True
    api_host: str | None = None
    api_allow_hosts: tuple[str, ...] = ()
    api_allow_origins: tuple[str, ...] = ()
    api_key_file: Path | None = None
    api_socket: Path | None = None
    allow_private: bool = False
    n_threads: int | None = None
    n_ctx: int | None = None
    n_slots: int | None = None
    n_gpu_layers: int | None = None
    flash_attention: str = AUTO
    kv_type: str = KV_TYPES[0]
    memory_gb: float | None = None
    idle_unload_min: float = 0.0
    is_owner_first: bool = True
    log_format: str = LOG_FORMATS[0]

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
        self._check_api()
        self._check_engine()
        self._check_memory()
        if self.log_format not in LOG_FORMATS:
            raise ConfigError(
                f"--log-format {self.log_format!r} is unknown.",
                hint=f"Choose one of {', '.join(LOG_FORMATS)}.",
            )

    def _check_api(self) -> None:
        is_loopback = self.api_host is None or _ip_address(self.api_host).is_loopback
        if self.api_key_file is not None or (is_loopback and not self.api_allow_hosts):
            return
        flag = "--api-allow-host" if is_loopback else f"--api-host {self.api_host}"
        raise ConfigError(
            f"{flag} opens the API to other machines: it needs an API key.",
            hint="Give --api-key-file FILE, a file of one key a line that only you can read;"
            " `openssl rand -hex 24` makes a key.",
        )

    def _check_engine(self) -> None:
        if self.n_slots is not None and not 1 <= self.n_slots <= defaults.MAX_SLOTS:
            raise ConfigError(
                f"--parallel {self.n_slots}: no model runs so many requests at once.",
                hint=f"Use 1 to {defaults.MAX_SLOTS}, or leave it out.",
            )
        if self.flash_attention not in FLASH_ATTENTION:
            raise ConfigError(
                f"--flash-attention {self.flash_attention!r} is unknown.",
                hint=f"Choose one of {', '.join(FLASH_ATTENTION)}.",
            )
        if self.kv_type not in KV_TYPES:
            raise ConfigError(
                f"--kv-type {self.kv_type!r} is unknown.",
                hint=f"Choose one of {', '.join(KV_TYPES)}.",
            )
        if self.kv_type != KV_TYPES[0] and self.flash_attention == "off":
            raise ConfigError(
                f"--kv-type {self.kv_type} works with flash attention only, and that is off.",
                hint=f"Leave one of them out, or use --kv-type {KV_TYPES[0]}.",
            )

    def _check_memory(self) -> None:
        # Written so that NaN is refused too.
        if self.memory_gb is not None and not 0 < self.memory_gb <= _MAX_MEMORY_GB:
            raise ConfigError(
                f"--memory {self.memory_gb:g} is no amount of memory.",
                hint="Give gigabytes, such as 8 or 0.5, or leave it out.",
            )
        if not 0 <= self.idle_unload_min <= _MAX_IDLE_MINUTES:
            raise ConfigError(
                f"--idle-unload {self.idle_unload_min:g} is no time.",
                hint="Give minutes, such as 30, or 0 for never.",
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

    def threads_each(self, n_models: int) -> int:
        """Compute threads for each of so many models that run at the same time: engines that share
        cores slow each other down.
        """
        n_threads = self.n_threads or os.cpu_count() or 1
        return max(1, n_threads // max(1, n_models))

    def memory_bytes(self, machine_bytes: int) -> int:
        """What all donated models may take on a machine with so much memory."""
        if self.memory_gb is not None:
            return round(self.memory_gb * _GB)
        return int(machine_bytes * defaults.DONATED_MEMORY_SHARE)

    @property
    def idle_unload_s(self) -> float:
        """Seconds without a request after which a model is unloaded; infinite: never."""
        return self.idle_unload_min * 60 or math.inf


def _ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(
            f"--api-host {text[:64]!r} is no IP address.",
            hint="Give an address of this machine, or 0.0.0.0 for all of them; without it, the API"
            " is served to this machine alone.",
        ) from None


def parse_gpu_layers(text: str) -> int | None:
    """What `--gpu-layers` says: a number, or None for "auto". Raises `ConfigError`."""
    if text == AUTO:
        return None
    if text.isascii() and text.isdecimal() and int(text) <= _MAX_GPU_LAYERS:
        return int(text)
    raise ConfigError(
        f"--gpu-layers {text[:32]!r} is no number of layers.",
        hint="Give auto, or a number: 0 computes all on the processor, 999 all on the GPU.",
    )


def models_dir_of(home: Path) -> Path:
    """Where model files are kept: `TOKENPLACE_MODELS_DIR`, else inside the home."""
    return Path(os.environ.get("TOKENPLACE_MODELS_DIR") or home / "models").expanduser()
