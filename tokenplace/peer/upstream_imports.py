"""Upstream faults in `import libp2p`: it loads much that is never used, and logs for everybody.

Start at `mend_import`. Mended against libp2p 0.8.1, each with a test
(tests/peer/test_upstream_imports.py):

- **imports** `__init__.py`, `host/basic_host.py` AutoTLS, mDNS, UPnP and the metrics exporter are
  loaded by every peer, without being used (the exporter's library is: `api_shim/exposition.py`).
- **root logger** `network/connection/swarm_connection.py:92` logs through the root logger's
  functions, which install a handler there and so print our messages a second time.

The unused packages cost 15 MB and a third of the import time. While libp2p is imported, and only
then, empty modules stand in for the packages behind them; a package that is already loaded, or is
imported later by somebody else, is the real one. `import tokenplace.peer` itself stays cheap:
nothing is imported before the first `import libp2p`.

The mends of `upstream_*` replace private parts of one release, so any other release is refused
here.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

from tokenplace.errors import ConfigError

LIBP2P_VERSION: Final = "0.8.1"
UNUSED_PACKAGES: Final = ("httpx", "miniupnpc", "requests", "zeroconf")


def mend_import() -> None:
    """Have the first `import libp2p` of this process mended.

    Where that was before `import tokenplace.peer`, the unused packages are loaded already; the rest
    is done now.
    """
    if "libp2p" in sys.modules:
        _take_over(sys.modules["libp2p"])
    else:
        sys.meta_path.insert(0, _Libp2pFinder())


def check_version(version: str) -> None:
    """Raise `ConfigError` unless `version` is the release that the mends were written for."""
    if version != LIBP2P_VERSION:
        raise ConfigError(
            f"libp2p {version} is installed; tokenplace mends private parts of {LIBP2P_VERSION}.",
            hint=f"Install libp2p=={LIBP2P_VERSION}. Before moving on, run"
            " tests/peer/test_upstream_*.py and tests/dht against the new release: docs/design.md"
            " lists the faults, and a test of the stock class that fails says which one is gone.",
        )


class _Libp2pFinder(importlib.abc.MetaPathFinder):
    """Finds libp2p where it is, and has it loaded by `_MendingLoader`."""

    _is_looking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "libp2p" or self._is_looking:
            return None
        self._is_looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._is_looking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _MendingLoader(spec.loader)
        return spec


class _MendingLoader(importlib.abc.Loader):
    """Loads libp2p with the unused packages stubbed, then takes it over."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        stubs = {name: _Stub(name) for name in UNUSED_PACKAGES if name not in sys.modules}
        sys.modules.update(stubs)
        try:
            self._loader.exec_module(module)
        finally:
            for name in stubs:
                sys.modules.pop(name, None)
        _take_over(module)


def _take_over(libp2p: ModuleType) -> None:
    """Refuse other releases, and quieten this one."""
    check_version(libp2p.__version__)
    silence_logging()


class _Stub(ModuleType):
    """Stands in for a package: every name in it is a class that cannot be instantiated."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        placeholder = type(name, (_Unused,), {"__module__": self.__name__})
        setattr(self, name, placeholder)
        return placeholder


class _Unused:
    """Base of all placeholders."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        raise NotImplementedError(f"tokenplace does not load {type(self).__module__}")


def silence_logging() -> None:
    """Keep libp2p's log to itself: it reports every failed dial, we log what matters."""
    logging.getLogger("libp2p").setLevel(logging.CRITICAL + 1)
    name = "libp2p.network.connection.swarm_connection"
    swarm_connection: Any = importlib.import_module(name)
    swarm_connection.logging = logging.getLogger(name)
