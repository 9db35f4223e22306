"""llama.cpp's own server, built from the very sources of the installed llama-cpp-python.

`python -m benchmarks.llama_server` takes some minutes, once; it prints the program's path. Start at
`build`. The result lies outside the project, so `make clean` does not throw it away:
`TOKENPLACE_BENCH_CACHE`, else the platform's cache folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Final

import platformdirs

from scripts.console import SetUpError, Status
from scripts.llama import (
    PROJECT,
    Tools,
    compile_target,
    fetch_sdist,
    this_build_key,
    unpack_sources,
)
from scripts.locks import parse_lock
from scripts.set_up import child_environment

PROGRAM: Final = "llama-server"
# As the libraries are compiled for the product, but with the server; without its web page, which
# would be fetched from elsewhere.
_CMAKE_OPTIONS: Final = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)


def cache_folder() -> Path:
    """Where what benchmarks need is kept."""
    chosen = os.environ.get("TOKENPLACE_BENCH_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("tokenplace", appauthor=False)


def locked_requirement(root: Path) -> str:
    """llama-cpp-python as the lock file pins it, hashes included."""
    return parse_lock((root / "requirements" / "run.lock").read_text("utf-8"))[PROJECT]


def path_of(requirement: str) -> Path:
    """The program for this version, this CPU and these options; there once it is whole."""
    options = hashlib.sha256("\0".join(_CMAKE_OPTIONS).encode()).hexdigest()[:8]
    return cache_folder() / f"{PROGRAM}-{this_build_key(requirement)}-{options}" / PROGRAM


def build(root: Path) -> Path:
    """The program, built if it is not there yet. Raises `SetUpError`."""
    requirement = locked_requirement(root)
    program = path_of(requirement)
    if program.exists():
        return program
    cache = cache_folder()
    tools = Tools(
        Path(sys.prefix) / "bin",
        child_environment(os.environ),
        root / ".cache" / "llama",  # the archive that the set-up fetched, if it did
        cache / "build.log",
    )
    cache.mkdir(parents=True, exist_ok=True)
    source = unpack_sources(fetch_sdist(requirement, tools), cache / "source")
    status = Status(f"compiling {PROGRAM}")
    compiled = cache / "build"
    compile_target(PROGRAM, source, compiled, _CMAKE_OPTIONS, tools, status)
    staging = program.parent.with_suffix(".tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    for file in [compiled / "bin" / PROGRAM, *(compiled / "bin").glob("*.so*")]:
        shutil.copy2(file, staging, follow_symlinks=False)
    staging.rename(program.parent)
    shutil.rmtree(compiled)
    shutil.rmtree(cache / "source")
    status.done()
    return program


def main() -> int:
    """Build, and say where it is."""
    try:
        print(build(Path(__file__).parents[1]))
    except SetUpError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
