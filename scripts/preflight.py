"""Can this machine build and run tokenplace? `python3 -m scripts.preflight`. Start at `problems`.

Runs on Python 3.8, because its first task is to say that 3.11 is needed. What is missing is named
together with the one command that mends it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.gpu import NO_GPU, GpuFacts, Problem, gather_gpu, gpu_problems

OLDEST = (3, 11)
NEWEST = (3, 13)  # for 3.14 some dependencies have no wheels yet
# Of a set-up from nothing: .venv 430 MB, the sdist unpacked 300 MB, its build 20 MB, the model 98
# MB and its wheel 93 MB; for the tests 130 MB more.
NEEDED_MIB = 1500
NEEDED_MIB_AGAIN = 200  # once `.venv` is there


@dataclass(frozen=True)
class Facts:
    """What was found out about the machine.

    is_debian_python: Debian's packages fit it. other_pythons: commands of versions that would do.
    """

    python: tuple[int, int]
    system: str
    has_venv: bool
    has_python_h: bool
    has_c_compiler: bool
    has_cxx_compiler: bool
    has_make: bool
    free_mib: int
    has_apt: bool
    is_set_up: bool
    is_debian_python: bool
    other_pythons: tuple[str, ...]
    gpu: GpuFacts = NO_GPU


def problems(facts: Facts) -> list[Problem]:
    """Everything that stands in the way, most basic first."""
    found = list(_python_problems(facts))
    # On macOS nothing was tried; who asks for its GPU knows where he is.
    if facts.system != "Linux" and (facts.system, facts.gpu.name) != ("Darwin", "metal"):
        found.append(Problem(f"{facts.system} is not supported: Linux is (see README.md)."))
    if not (facts.has_c_compiler and facts.has_cxx_compiler):
        found.append(Problem("No C and C++ compiler (llama.cpp is compiled here).", ("g++",)))
    if not facts.has_make:
        found.append(Problem("No make (one dependency is compiled with it).", ("make",)))
    found += gpu_problems(facts.gpu, facts.system)
    needed = NEEDED_MIB_AGAIN if facts.is_set_up else NEEDED_MIB
    if facts.free_mib < needed:
        found.append(Problem(f"{needed} MiB of disk are needed here, {facts.free_mib} are free."))
    return found


def _python_problems(facts: Facts) -> list[Problem]:
    version = ".".join(map(str, facts.python))
    if not OLDEST <= facts.python <= NEWEST:
        wanted = f"Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]} is needed"
        if facts.other_pythons:
            hint = f"run make with PYTHON={facts.other_pythons[0]}, which is installed"
        else:
            hint = "install one and run make with PYTHON=its command"
        # Whether that other one has its venv and headers is seen when it runs this.
        return [Problem(f"{wanted}; this is {version}: {hint}.")]
    found = []
    # Debian's packages only fit Debian's own Python; any other brings both parts with it or was
    # built without.
    packaged = facts.is_debian_python
    if not facts.has_venv:
        packages = (f"python{version}-venv",) if packaged else ()
        found.append(Problem("Python's venv module is missing or not complete.", packages))
    if not facts.has_python_h:
        packages = (f"python{version}-dev",) if packaged else ()
        found.append(Problem("Python.h is missing (two dependencies are compiled).", packages))
    return found


def report(found: Sequence[Problem], facts: Facts) -> str:
    """What to print: every problem, and the one line that mends what a package can mend."""
    lines = ["tokenplace cannot be set up here yet:"]
    lines += [f"  - {problem.text}" for problem in found]
    packages = sorted({package for problem in found for package in problem.packages})
    if packages and facts.has_apt:
        lines += ["", "As root, this mends it:", f"  apt-get install -y {' '.join(packages)}"]
    elif packages:
        lines += ["", f"Install what your system calls (on Debian: {' '.join(packages)})."]
    return "\n".join(lines)


def gather(environment: Mapping[str, str], folder: Path) -> Facts:
    """Look at this machine. Reads only; takes milliseconds."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    include = sysconfig.get_path("include")
    return Facts(
        python=(sys.version_info[0], sys.version_info[1]),
        system=platform.system(),
        has_venv=all(map(importlib.util.find_spec, ("venv", "ensurepip"))),
        has_python_h=(Path(include) / "Python.h").is_file(),
        has_c_compiler=_has_command(environment.get("CC"), "cc", "gcc", "clang"),
        has_cxx_compiler=_has_command(environment.get("CXX"), "c++", "g++", "clang++"),
        has_make=_has_command(environment.get("MAKE"), "make"),
        free_mib=shutil.disk_usage(existing).free >> 20,
        has_apt=shutil.which("apt-get") is not None,
        is_set_up=(folder / ".venv").exists(),
        is_debian_python=sys.base_prefix == "/usr",
        other_pythons=() if OLDEST <= sys.version_info[:2] <= NEWEST else _other_pythons(),
        gpu=gather_gpu(environment),
    )


def _has_command(wanted: str | None, *usual: str) -> bool:
    # CC may hold options too: "ccache gcc".
    commands = (wanted.split()[0],) if wanted and wanted.split() else usual
    return any(shutil.which(command) for command in commands)


def _other_pythons() -> tuple[str, ...]:
    commands = (f"python3.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1))
    return tuple(command for command in commands if _runs(command))


def _runs(command: str) -> bool:
    # A version manager's stand-in is found but may say that nothing is behind it.
    try:
        result = subprocess.run([command, "-c", ""], capture_output=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return result.returncode == 0


def main() -> int:
    """Print what is missing; 0 when nothing is."""
    facts = gather(os.environ, Path.cwd())
    found = problems(facts)
    if found:
        print(report(found, facts), file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
