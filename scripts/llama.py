"""llama-cpp-python, compiled the fastest correct way. Start at `install_llama`.

`pip install` of its sdist compiles all of llama.cpp with its tools in more than twice the time.
Here its Python part is installed without any library, and only libllama is compiled, out of the
same sdist, because the structures of both must agree. The libraries are kept in `.cache`, so a new
`.venv` does not compile again; they are made for this very CPU, and for one kind of GPU or none.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.console import SetUpError, Status, duration, run_logged
from scripts.gpu import OPTIONS
from scripts.locks import hashes_of, lock_text

PROJECT: Final = "llama-cpp-python"
# Measured on two cores of an AMD EPYC: 108 s. Only the first word to a person; then ninja's own
# count tells.
_COMPILE_CORE_S: Final = 215
_CMAKE_OPTIONS: Final = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    # The libraries find each other wherever they are copied to.
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
)
# As one line on stdout, because llama.cpp talks on stderr.
_LOOK_FOR_GPU: Final = (
    "import llama_cpp; llama_cpp.llama_backend_init(); "
    "print(bool(llama_cpp.llama_supports_gpu_offload()))"
)
_NINJA_STEP = re.compile(r"\[(\d+)/(\d+)\]")


@dataclass(frozen=True)
class Tools:
    """What the installation works with. bin: of `.venv`; environment: for child processes; log:
    where they write; gpu: one of `gpu.OPTIONS`.
    """

    bin: Path
    environment: dict[str, str]
    cache: Path
    log: Path
    gpu: str = ""

    @property
    def pip(self) -> list[str]:
        return [str(self.bin / "python"), "-m", "pip"]


def build_key(requirement: str, cpu: str, gpu: str = "") -> str:
    """16 hex digits for everything that the compiled libraries depend on."""
    options = (*_CMAKE_OPTIONS, *OPTIONS[gpu])
    parts = [requirement, cpu, platform.machine(), *platform.libc_ver(), *options]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def cpu_features(cpuinfo: str) -> str:
    """What this CPU can do, by /proc/cpuinfo: libraries made for another may die of SIGILL."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    return " ".join(sorted(found[1].split())) if found else ""


def this_build_key(requirement: str, gpu: str = "") -> str:
    """`build_key` for this machine."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text("utf-8", "replace") if cpuinfo.exists() else ""
    return build_key(requirement, cpu_features(text), gpu)


def ninja_detail(line: str, elapsed_s: float) -> str | None:
    """`[34/78] ...` → how far the compilation is, and what is left; None for other lines."""
    found = _NINJA_STEP.match(line)
    if found is None:
        return None
    n_done, n_steps = int(found[1]), int(found[2])
    left_s = elapsed_s / max(1, n_done) * (n_steps - n_done)
    # The first files are small: an estimate from them would only alarm.
    guess = f", about {duration(left_s)} left" if n_done > n_steps // 5 else ""
    return f"{n_done} of {n_steps} files{guess}"


def libraries_of(requirement: str, cache: Path, gpu: str = "") -> Path:
    """Where this machine's compiled libraries are kept; the folder is there once they are whole."""
    return cache / this_build_key(requirement, gpu)


def compile_time(gpu: str = "") -> str:
    """About how long compiling takes here, for a person."""
    if gpu:  # CUDA's kernels are thousands of lines for each type and size
        return f"far longer than {duration(_COMPILE_CORE_S / _n_cores())}"
    return f"about {duration(_COMPILE_CORE_S / _n_cores())}"


def _n_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def install_llama(requirement: str, tools: Tools) -> None:
    """Install the Python part and the libraries into `.venv`. Raises `SetUpError`."""
    sdist = fetch_sdist(requirement, tools)
    status = Status("installing llama-cpp-python without its libraries")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir"]
    run_logged(
        # Without pip's cache, or it would keep a wheel without libraries for whoever asks next.
        [*tools.pip, "install", *options, str(sdist)],
        tools.log,
        status,
        environment={**tools.environment, "CMAKE_ARGS": "-DLLAMA_BUILD=OFF"},
    )
    status.done()
    libraries = libraries_of(requirement, tools.cache, tools.gpu)
    if not libraries.exists():
        _compile(sdist, libraries, tools)
    _copy_libraries(libraries, tools)


def fetch_sdist(requirement: str, tools: Tools) -> Path:
    """The source archive in the cache, fetched if it is not there. Raises `SetUpError`."""
    allowed = hashes_of(requirement)
    tools.cache.mkdir(parents=True, exist_ok=True)
    here = _with_hash(tools.cache, allowed)
    if here is not None:
        return here
    status = Status("fetching the sources of llama-cpp-python (77 MB)")
    lock = tools.cache / "sdist.lock"
    lock.write_text(lock_text([requirement]), "utf-8")
    options = ["--no-deps", "--no-build-isolation", "--no-binary", PROJECT, "--require-hashes"]
    run_logged(
        [*tools.pip, "download", *options, "--dest", str(tools.cache), "--requirement", str(lock)],
        tools.log,
        status,
        environment={**tools.environment, "CMAKE_ARGS": "-DLLAMA_BUILD=OFF"},
    )
    status.done()
    here = _with_hash(tools.cache, allowed)
    if here is None:
        raise SetUpError(f"pip brought no sources of {PROJECT} with a hash of the lock file.")
    return here


def _with_hash(folder: Path, allowed: set[str]) -> Path | None:
    for path in folder.glob("*.tar.gz"):
        if hashlib.sha256(path.read_bytes()).hexdigest() in allowed:
            return path
    return None


def _compile(sdist: Path, libraries: Path, tools: Tools) -> None:
    what = f"llama.cpp for {tools.gpu}" if tools.gpu else "llama.cpp"
    status = Status(f"compiling {what}, {compile_time(tools.gpu)} on {_n_cores()} cores")
    unpacked = tools.cache / "source"
    source = unpack_sources(sdist, unpacked)
    # A build that was interrupted goes on where it was: ninja knows which files are whole.
    build = libraries.with_name(f"build-{libraries.name}")
    options = (*_CMAKE_OPTIONS, *OPTIONS[tools.gpu])
    compile_target("llama", source, build, options, tools, status)
    staging = libraries.with_name(f"{libraries.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    for pattern in ("*.so*", "*.dylib"):
        for library in (build / "bin").glob(pattern):
            shutil.copy2(library, staging, follow_symlinks=False)
    staging.rename(libraries)
    shutil.rmtree(build)
    shutil.rmtree(unpacked)
    status.done()


def compile_target(
    target: str, source: Path, build: Path, options: Sequence[str], tools: Tools, status: Status
) -> None:
    """Build one target of llama.cpp's sources in the folder `build`. Raises `SetUpError`."""
    log = tools.log.with_name("llama-build.log")
    log.unlink(missing_ok=True)
    cmake = [str(tools.bin / "cmake"), "-G", "Ninja", "-S", str(source), "-B", str(build)]
    # Ninja may only be in `.venv`, which is not on the PATH.
    ninja = str(tools.bin / "ninja")
    options = [*options, f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    run_logged([*cmake, *options], log, status, environment=tools.environment)
    compiling_since_s = status.elapsed_s
    run_logged(
        [ninja, "-C", str(build), "-j", str(_n_cores()), target],
        log,
        status,
        lambda line: ninja_detail(line, status.elapsed_s - compiling_since_s),
        tools.environment,
    )


def unpack_sources(sdist: Path, folder: Path) -> Path:
    """The sources of llama.cpp out of the sdist, whose hash was checked."""
    done = folder / "whole"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with tarfile.open(sdist) as archive:
            members = [m for m in archive.getmembers() if "/vendor/llama.cpp/" in f"/{m.name}/"]
            # Python 3.11.2, Debian's, has no filters yet.
            if hasattr(tarfile, "data_filter"):
                archive.extractall(folder, members, filter="data")
            else:
                archive.extractall(folder, members)
        done.touch()
    (source,) = folder.glob("*/vendor/llama.cpp")
    return source


def _copy_libraries(libraries: Path, tools: Tools) -> None:
    (packages,) = (tools.bin.parent / "lib").glob("python3.*/site-packages")
    target = packages / "llama_cpp" / "lib"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(libraries, target, symlinks=True)
    status = Status("loading llama.cpp")
    said: list[str] = []
    command = [str(tools.bin / "python"), "-c", _LOOK_FOR_GPU]
    run_logged(command, tools.log, status, lambda line: said.append(line))
    status.done()
    if tools.gpu and "True" not in said:
        # No error: the same build runs on the processor, and drivers may come later.
        print(f"  llama.cpp sees no GPU through {tools.gpu}: is its driver there?", file=sys.stderr)
