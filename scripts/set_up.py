"""Everything that `make run` and `make test` need, made once: `python3 -m scripts.set_up run|test`.
Start at `main`.

`.venv` is remade from nothing whenever its lock file changed or a set-up was interrupted: a
half-installed one is never trusted. What takes long to make again (llama.cpp's libraries, the
model) lies in `.cache`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scripts.console import SetUpError, Status, run_logged
from scripts.gpu import wanted_gpu
from scripts.llama import (
    PROJECT,
    Tools,
    compile_time,
    install_llama,
    libraries_of,
    this_build_key,
)
from scripts.locks import covers, lock_text, parse_lock

LOCKS: Final = ("run", "test")
DEFAULT_MODEL: Final = "smollm2-135m-instruct"
# Installed first: the few projects without a wheel are built with these, not with what pip would
# fetch unchecked.
BUILD_TOOLS: Final = (
    "setuptools",
    "wheel",
    "packaging",
    "pathspec",
    "scikit-build-core",
    "cmake",
    "ninja",
)


@dataclass(frozen=True)
class Stamp:
    """What a finished set-up was made of. Written last, removed before anything is changed."""

    lock: str
    lock_sha256: str
    project_sha256: str
    llama: str
    venv: str
    python: str


@dataclass(frozen=True)
class Plan:
    """What is to be done. is_new: `.venv` is made from nothing, so everything is."""

    is_new: bool
    packages: bool
    llama: bool
    project: bool

    @property
    def is_nothing(self) -> bool:
        return not (self.is_new or self.packages or self.llama or self.project)


def plan(
    done: Stamp | None, wanted: Stamp, lock_sha256: Mapping[str, str], test_covers_run: bool
) -> Plan:
    """
    What leads from what is there to what is wanted. lock_sha256: of the lock files as they are now,
    by name.
    """
    is_new = (
        done is None
        or (done.venv, done.python) != (wanted.venv, wanted.python)
        or done.lock_sha256 != lock_sha256.get(done.lock)
        or (done.lock != wanted.lock and not test_covers_run)
    )
    if done is None or is_new:
        return Plan(is_new=True, packages=True, llama=True, project=True)
    return Plan(
        is_new=False,
        packages=(done.lock, wanted.lock) == ("run", "test"),
        llama=done.llama != wanted.llama,
        project=done.project_sha256 != wanted.project_sha256,
    )


def read_stamp(path: Path) -> Stamp | None:
    """None when there is none, or none that this version wrote."""
    try:
        return Stamp(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


class SetUp:
    """The set-up of one working tree."""

    def __init__(self, root: Path, lock_name: str, environment: Mapping[str, str]) -> None:
        self.root = root
        self.lock_name = lock_name
        self.venv = root / ".venv"
        self.cache = root / ".cache"
        self.log = self.cache / "set-up.log"
        self.stamp_path = self.venv / "set-up.json"
        self.locks = {
            name: (root / "requirements" / f"{name}.lock").read_text("utf-8") for name in LOCKS
        }
        self.requirements = parse_lock(self.locks[lock_name])
        self.environment = child_environment(environment)
        self.gpu = wanted_gpu(environment)
        llama = self.cache / "llama"
        self.tools = Tools(self.venv / "bin", self.environment, llama, self.log, self.gpu)

    def wanted(self) -> Stamp:
        """The stamp of a set-up that is up to date."""
        project = b"".join(
            (self.root / name).read_bytes() for name in ("setup.cfg", "pyproject.toml")
        )
        return Stamp(
            lock=self.lock_name,
            lock_sha256=_sha256(self.locks[self.lock_name].encode()),
            project_sha256=_sha256(project),
            llama=this_build_key(self.requirements[PROJECT], self.gpu),
            venv=str(self.venv),
            python="{}.{} {}".format(*sys.version_info[:2], os.path.realpath(sys.executable)),
        )

    def run(self) -> None:
        """Bring everything up to date. Raises `SetUpError`."""
        wanted = self.wanted()
        done = read_stamp(self.stamp_path)
        todo = plan(
            done,
            wanted,
            {name: _sha256(text.encode()) for name, text in self.locks.items()},
            covers(parse_lock(self.locks["test"]), parse_lock(self.locks["run"])),
        )
        if not todo.is_nothing:
            print(self._announcement(todo), file=sys.stderr)
            self.stamp_path.unlink(missing_ok=True)
            self.log.unlink(missing_ok=True)
            self._carry_out(todo)
            if done is not None and done.lock == "test" and not todo.is_new:
                # What is installed is still the larger set.
                wanted = Stamp(**{**vars(wanted), "lock": "test", "lock_sha256": done.lock_sha256})
            self.stamp_path.write_text(json.dumps(vars(wanted), indent=1), "utf-8")
        self._fetch_model()
        if self.lock_name == "test":
            self._fetch_embedding_model()
            self._install_clients()

    def _announcement(self, todo: Plan) -> str:
        text = f"setting up (log: {self.log.relative_to(self.root)})"
        if todo.is_new:
            text += ": about a minute for .venv"
        libraries = libraries_of(self.requirements[PROJECT], self.tools.cache, self.gpu)
        if todo.llama and not libraries.exists():
            text += f", once {compile_time(self.gpu)} more to compile llama.cpp"
        return text

    def _carry_out(self, todo: Plan) -> None:
        if todo.is_new:
            self._make_venv()
            self._install(
                "the build tools", {name: self.requirements[name] for name in BUILD_TOOLS}
            )
        if todo.packages:
            others = {
                name: requirement
                for name, requirement in self.requirements.items()
                if name != PROJECT and name not in BUILD_TOOLS
            }
            self._install(f"{len(others)} packages", others)
        if todo.llama:
            install_llama(self.requirements[PROJECT], self.tools)
        if todo.project:
            status = Status("installing tokenplace itself")
            options = ["--no-deps", "--no-build-isolation", "--editable", str(self.root)]
            self._pip(status, "install", *options)
            status.done()

    def _make_venv(self) -> None:
        status = Status("making .venv")
        if self.venv.exists():
            shutil.rmtree(self.venv)
        run_logged([sys.executable, "-m", "venv", str(self.venv)], self.log, status)
        status.done()

    def _install(self, what: str, requirements: Mapping[str, str]) -> None:
        status = Status(f"installing {what}")
        lock = self.cache / "install.lock"
        lock.write_text(lock_text(requirements.values()), "utf-8")
        n_found = 0

        def on_line(line: str) -> str | None:
            nonlocal n_found
            n_found += line.startswith("Collecting ")
            if line.startswith("Installing collected"):
                return "unpacking"
            return f"{n_found} of {len(requirements)} fetched"

        options = ["--no-deps", "--require-hashes", "--no-build-isolation", "--use-pep517"]
        self._pip(status, "install", *options, "--requirement", str(lock), on_line=on_line)
        status.done()

    def _pip(self, status: Status, *arguments: str, on_line: Any = lambda line: None) -> None:
        run_logged(
            [*self.tools.pip, *arguments], self.log, status, on_line, environment=self.environment
        )

    def _fetch_model(self) -> None:
        note = self.venv / "model.txt"
        folder = self.environment["TOKENPLACE_MODELS_DIR"]
        if note.exists():
            path = Path(note.read_text("utf-8"))
            if path.is_file() and path.parent == Path(folder):
                return
        # The product's own command, which checks the hash and shows its own progress.
        command = [str(self.tools.bin / "tokenplace"), "models", "pull", DEFAULT_MODEL, "--yes"]
        result = subprocess.run(
            [*command, "--home", str(self.cache / "home")],
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise SetUpError("The default model could not be fetched.")
        note.write_text(result.stdout.strip().splitlines()[-1], "utf-8")

    def _fetch_embedding_model(self) -> None:
        # In .venv, because it needs the product and gguf; it says itself what goes wrong.
        command = [str(self.tools.bin / "python"), "-m", "scripts.embedding_model"]
        folder = self.environment["TOKENPLACE_MODELS_DIR"]
        result = subprocess.run(
            [*command, folder], cwd=self.root, env=self.environment, check=False
        )
        if result.returncode != 0:
            raise SetUpError("The embedding model of the tests could not be made.")

    def _install_clients(self) -> None:
        # In .venv, because that has uv; it says itself what goes wrong.
        command = [str(self.tools.bin / "python"), "-m", "scripts.clients"]
        result = subprocess.run(command, cwd=self.root, env=self.environment, check=False)
        if result.returncode != 0:
            raise SetUpError("The clients of the tests could not be installed.")


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What pip, cmake and the rest are started with."""
    kept = {
        name: value
        for name, value in environment.items()
        # make's own settings are not for the Makefiles of dependencies; `pip --user` does not go
        # with a venv.
        if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PIP_USER")
    }
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def only_one(cache: Path) -> Iterator[None]:
    """Two set-ups of one tree run one after the other."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "set-up.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("  waiting for another set-up of this folder ...", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: list[str]) -> int:
    """Set up for `run` or `test` in the current folder; 0 when everything is there."""
    (lock_name,) = arguments
    root = Path.cwd()
    environment = {"TOKENPLACE_MODELS_DIR": str(root / ".cache" / "models"), **os.environ}
    try:
        with only_one(root / ".cache"):
            SetUp(root, lock_name, environment).run()
    except SetUpError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"\nset-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the next run goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
