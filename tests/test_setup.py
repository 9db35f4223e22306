"""What `make` runs, as far as it can be tried without an hour of installing: decisions, parsing,
and small commands.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import llama, preflight, set_up
from scripts.console import SetUpError, Status, duration, run_logged
from scripts.locks import covers, hashes_of, lock_text, parse_lock
from scripts.preflight import Facts, Problem, problems, report
from scripts.set_up import Plan, SetUp, Stamp, child_environment, only_one, plan, read_stamp
from tests.conftest import ROOT
from tokenplace.models.catalogue import DEFAULT_MODEL

READY = Facts(
    python=(3, 11),
    system="Linux",
    has_venv=True,
    has_python_h=True,
    has_c_compiler=True,
    has_cxx_compiler=True,
    has_make=True,
    free_mib=100_000,
    has_apt=True,
    is_set_up=False,
    is_debian_python=True,
    other_pythons=(),
)
BARE = replace(
    READY,
    has_venv=False,
    has_python_h=False,
    has_c_compiler=False,
    has_cxx_compiler=False,
    has_make=False,
)

# ---------------------------------------------------------------- preflight


def test_a_ready_machine_has_no_problems() -> None:
    assert problems(READY) == []


def test_one_line_mends_all_that_packages_can() -> None:
    text = report(problems(BARE), BARE)
    assert re.findall(r"apt-get.*", text) == [
        "apt-get install -y g++ make python3.11-dev python3.11-venv"
    ]
    assert "sudo" not in text


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"python": (3, 9)}, "this is 3.9: install one"),
        ({"python": (3, 14)}, "Python 3.11 to 3.13 is needed; this is 3.14"),
        ({"python": (3, 9), "other_pythons": ("python3.12",)}, "make with PYTHON=python3.12"),
        ({"system": "Darwin"}, "Darwin is not supported"),
        ({"has_venv": False}, "venv"),
        ({"has_python_h": False}, "Python.h"),
        ({"has_cxx_compiler": False}, "compiler"),
        ({"has_make": False}, "make"),
        ({"free_mib": 900}, "1500 MiB of disk are needed here, 900 are free"),
    ],
)
def test_each_fault_is_named_alone(fault: dict[str, object], says: str) -> None:
    facts = dataclasses.replace(READY, **fault)  # type: ignore[arg-type]
    found = problems(facts)
    assert len(found) == 1
    assert says in report(found, facts)


def test_a_finished_set_up_needs_little_disk() -> None:
    assert problems(replace(READY, free_mib=900, is_set_up=True)) == []


def test_debians_packages_are_only_named_for_debians_python() -> None:
    own = replace(BARE, is_debian_python=False)
    assert "apt-get install -y g++ make\n" in report(problems(own), own) + "\n"
    other_system = replace(BARE, has_apt=False)
    text = report(problems(other_system), other_system)
    assert "apt-get" not in text
    assert "on Debian: g++" in text


def test_without_a_package_no_command_is_invented() -> None:
    assert "apt-get" not in report([Problem("no disk")], READY)


def test_this_machine_is_seen_as_it_is(tmp_path: Path) -> None:
    facts = preflight.gather(os.environ, tmp_path / "not" / "yet")
    assert problems(facts) == []
    assert facts.python == sys.version_info[:2]
    assert not facts.is_set_up
    bare = preflight.gather({"CC": "no-such-cc -O2", "CXX": "no-such-cxx", "MAKE": "no"}, tmp_path)
    assert (bare.has_c_compiler, bare.has_cxx_compiler, bare.has_make) == (False, False, False)


def test_preflight_can_be_read_by_old_pythons() -> None:
    for name in ("__init__", "preflight", "gpu"):
        ast.parse((ROOT / "scripts" / f"{name}.py").read_text("utf-8"), feature_version=(3, 8))


# ---------------------------------------------------------------- lock files

LOCK = """\
msgpack==1.2.4 \\
    --hash=sha256:{a}
numpy==2.4.6 ; python_full_version < '3.12' \\
    --hash=sha256:{b} \\
    --hash=sha256:{c}
numpy==2.5.5 ; python_full_version >= '3.12' \\
    --hash=sha256:{d}
""".format(a="a" * 64, b="b" * 64, c="c" * 64, d="d" * 64)


def test_a_lock_file_is_read_whole() -> None:
    requirements = parse_lock(LOCK)
    assert list(requirements) == ["msgpack", "numpy"]
    assert hashes_of(requirements["numpy"]) == {"b" * 64, "c" * 64, "d" * 64}
    assert lock_text(requirements.values()) == LOCK


@pytest.mark.parametrize("line", ["msgpack", "msgpack==1.0", "-e .", "--index-url somewhere"])
def test_what_is_not_locked_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="pinned"):
        parse_lock(line)


@pytest.mark.parametrize("name", set_up.LOCKS)
def test_our_lock_files_hold_everything_that_was_asked_for(name: str) -> None:
    locked = parse_lock((ROOT / "requirements" / f"{name}.lock").read_text("utf-8"))
    asked = (ROOT / "requirements" / f"{name}.in").read_text("utf-8")
    names = {found[0] for line in asked.splitlines() if (found := re.match(r"[a-z][\w-]*", line))}
    assert names <= set(locked)
    assert {*set_up.BUILD_TOOLS, llama.PROJECT} <= set(locked)
    assert "://" not in "".join(locked.values())


def test_what_is_tested_is_what_runs() -> None:
    run, test = (
        parse_lock((ROOT / "requirements" / f"{name}.lock").read_text("utf-8"))
        for name in ("run", "test")
    )
    assert covers(test, run)
    assert not covers(run, test)


# ---------------------------------------------------------------- what is to be done

RUN = Stamp("run", "run-1", "project-1", "llama-1", "/tree/.venv", "3.11")
TEST = replace(RUN, lock="test", lock_sha256="test-1")
LOCKS_NOW = {"run": "run-1", "test": "test-1"}
NOTHING = Plan(is_new=False, packages=False, llama=False, project=False)
EVERYTHING = Plan(is_new=True, packages=True, llama=True, project=True)


@pytest.mark.parametrize(
    ("done", "wanted", "expected"),
    [
        (None, RUN, EVERYTHING),
        (RUN, RUN, NOTHING),
        (TEST, TEST, NOTHING),
        (TEST, RUN, NOTHING),
        (RUN, TEST, replace(NOTHING, packages=True)),
        (replace(RUN, lock_sha256="run-0"), RUN, EVERYTHING),
        (replace(TEST, lock_sha256="test-0"), RUN, EVERYTHING),
        (replace(RUN, python="3.12"), RUN, EVERYTHING),
        (replace(RUN, venv="/moved/.venv"), RUN, EVERYTHING),
        (replace(RUN, project_sha256="project-0"), RUN, replace(NOTHING, project=True)),
        (replace(RUN, llama="another-cpu"), RUN, replace(NOTHING, llama=True)),
    ],
)
def test_only_what_changed_is_made_again(done: Stamp | None, wanted: Stamp, expected: Plan) -> None:
    assert plan(done, wanted, LOCKS_NOW, test_covers_run=True) == expected
    assert expected.is_nothing == (expected == NOTHING)


def test_locks_that_differ_need_venvs_that_differ() -> None:
    assert plan(TEST, RUN, LOCKS_NOW, test_covers_run=False) == EVERYTHING


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b'{"lock": "run"}', b"\xff"])
def test_a_damaged_stamp_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "set-up.json").write_bytes(content)
    assert read_stamp(tmp_path / "set-up.json") is None
    assert read_stamp(tmp_path / "absent.json") is None


class Recorded(SetUp):
    """A set-up that installs nothing and may be interrupted."""

    def __init__(self, root: Path, lock_name: str) -> None:
        super().__init__(root, lock_name, {"TOKENPLACE_MODELS_DIR": str(root / "models")})
        self.plans: list[Plan] = []
        self.models: list[str] = []
        self.is_interrupted = False

    def _carry_out(self, todo: Plan) -> None:
        assert not self.stamp_path.exists(), "a half-finished set-up must not look finished"
        self.plans.append(todo)
        self.venv.mkdir(exist_ok=True)
        if self.is_interrupted:
            raise KeyboardInterrupt

    def _fetch_model(self) -> None:
        self.models.append("the default")

    def _fetch_embedding_model(self) -> None:
        self.models.append("for embeddings")

    def _install_clients(self) -> None:
        """Nothing is asked of this tree's clients."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "requirements").mkdir()
    for path in ("setup.cfg", "pyproject.toml", "requirements/run.lock", "requirements/test.lock"):
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    return tmp_path


def test_a_set_up_is_done_once_for_both_commands(tree: Path) -> None:
    for lock_name, expected in [
        ("run", [EVERYTHING]),
        ("run", []),
        ("test", [replace(NOTHING, packages=True)]),
        ("test", []),
        ("run", []),
    ]:
        recorded = Recorded(tree, lock_name)
        recorded.run()
        assert recorded.plans == expected
        assert recorded.models == ["the default", "for embeddings"][: 1 + (lock_name == "test")]


def test_an_interrupted_set_up_is_made_anew(tree: Path) -> None:
    Recorded(tree, "run").run()
    interrupted = Recorded(tree, "test")
    interrupted.is_interrupted = True
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    again = Recorded(tree, "run")
    again.run()
    assert again.plans == [EVERYTHING]


def test_what_takes_long_is_said_before(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = Recorded(tree, "run")
    recorded.run()
    said = capsys.readouterr().err
    assert said.startswith("setting up (log: .cache/set-up.log): about a minute for .venv, once ")
    assert "to compile llama.cpp" in said
    Recorded(tree, "run").run()
    assert capsys.readouterr().err == ""
    llama.libraries_of(recorded.requirements[llama.PROJECT], recorded.tools.cache).mkdir(
        parents=True
    )
    recorded.stamp_path.unlink()
    Recorded(tree, "run").run()
    assert "compile" not in capsys.readouterr().err


def test_more_packages_stay_known_when_something_else_changes(tree: Path) -> None:
    Recorded(tree, "test").run()
    (tree / "setup.cfg").write_text("[metadata]\nname = tokenplace\n")
    changed = Recorded(tree, "run")
    changed.run()
    assert changed.plans == [replace(NOTHING, project=True)]
    after = Recorded(tree, "test")
    after.run()
    assert after.plans == []


def test_the_model_is_the_catalogues() -> None:
    assert DEFAULT_MODEL.name == set_up.DEFAULT_MODEL


def test_makes_own_settings_stay_with_make() -> None:
    environment = child_environment({"MAKEFLAGS": "-j8", "PIP_USER": "1", "PATH": "/bin"})
    assert "MAKEFLAGS" not in environment
    assert "PIP_USER" not in environment
    assert environment["PATH"] == "/bin"


def test_two_set_ups_of_one_tree_wait_for_each_other(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from scripts.set_up import only_one\n"
        "with only_one(Path(sys.argv[1])): print('in')"
    )
    with only_one(tmp_path):
        second = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert second.stderr is not None
        assert "waiting" in second.stderr.readline()
        assert second.poll() is None
    assert second.communicate(timeout=30)[0] == "in\n"


# ---------------------------------------------------------------- llama.cpp


def test_libraries_are_made_for_this_cpu_and_these_sources() -> None:
    cpu = llama.cpu_features("processor: 0\nflags\t\t: sse avx512f\n\nprocessor: 1\nflags\t: sse\n")
    assert cpu == "avx512f sse"
    assert llama.cpu_features("Features\t: fp asimd\n") == "asimd fp"
    assert llama.cpu_features("") == ""
    keys = {llama.build_key("one", cpu), llama.build_key("two", cpu), llama.build_key("one", "sse")}
    assert len(keys) == 3
    assert all(re.fullmatch(r"[0-9a-f]{16}", key) for key in keys)
    assert llama.build_key("one", cpu) in keys


@pytest.mark.parametrize(
    ("line", "elapsed_s", "expected"),
    [
        ("[2/78] Building CXX object a.o", 3.0, "2 of 78 files"),
        ("[39/78] Building CXX object b.o", 50.0, "39 of 78 files, about 50 s left"),
        ("[78/78] Linking", 100.0, "78 of 78 files, about 0 s left"),
        ("ninja: entering directory", 1.0, None),
        ("[x/y]", 1.0, None),
        ("[0/2] Re-checking", 0.0, "0 of 2 files"),
    ],
)
def test_ninjas_progress(line: str, elapsed_s: float, expected: str | None) -> None:
    assert llama.ninja_detail(line, elapsed_s) == expected


def test_only_llama_cpp_is_unpacked_and_only_once(tmp_path: Path) -> None:
    sdist = tmp_path / "llama.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for name in ("x-1/setup.py", "x-1/vendor/llama.cpp/CMakeLists.txt"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    source = llama.unpack_sources(sdist, tmp_path / "source")
    assert [path.name for path in source.iterdir()] == ["CMakeLists.txt"]
    assert not (tmp_path / "source/x-1/setup.py").exists()
    (tmp_path / "source/whole").unlink()
    (source / "left-over").touch()
    assert not (llama.unpack_sources(sdist, tmp_path / "source") / "left-over").exists()
    sdist.unlink()
    assert llama.unpack_sources(sdist, tmp_path / "source") == source


# ---------------------------------------------------------------- talking while something runs


def test_durations() -> None:
    assert [duration(s) for s in (0.2, 59.4, 75.2)] == ["0 s", "59 s", "1 min 15 s"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_line_and_a_log_gets_few() -> None:
    for out, n_lines in ((Terminal(), 1), (io.StringIO(), 2)):
        status = Status("compiling", out)
        for n_done in range(100):
            status.show(f"{n_done} of 100 files")
        status.done()
        assert out.getvalue().count("\n") == n_lines
        assert ("99 of 100 files" in out.getvalue()) == out.isatty()
        assert out.getvalue().endswith("compiling: 0 s\n")


def test_a_command_is_logged_and_read(tmp_path: Path) -> None:
    seen: list[str] = []
    out = Terminal()
    run_logged(
        [sys.executable, "-c", "print('[1/2] one'); print('[2/2] two')"],
        tmp_path / "logs" / "build.log",
        Status("building", out),
        lambda line: seen.append(line) or line,  # type: ignore[func-returns-value]
    )
    assert seen == ["[1/2] one", "[2/2] two"]
    assert "[2/2] two" in out.getvalue()
    assert (tmp_path / "logs" / "build.log").read_text() == "[1/2] one\n[2/2] two\n"


def test_a_failed_command_shows_the_end_of_its_log(tmp_path: Path) -> None:
    code = "for i in range(100): print('line', i)\nraise SystemExit(3)"
    with pytest.raises(SetUpError) as caught:
        run_logged([sys.executable, "-c", code], tmp_path / "a.log", Status("x", io.StringIO()))
    assert "line 99" in str(caught.value)
    assert "line 70" not in str(caught.value)
    assert str(tmp_path / "a.log") in str(caught.value)


def test_a_set_up_that_fails_says_why_without_a_traceback(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: SetUp, todo: Plan) -> None:
        raise SetUpError("no network")

    monkeypatch.setattr(SetUp, "_carry_out", fail)
    monkeypatch.chdir(tree)
    assert set_up.main(["run"]) == 1
    assert capsys.readouterr().err.endswith("\n\nno network\n")


# ---------------------------------------------------------------- make


def make(*arguments: str) -> str:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_make_alone_lists_the_targets() -> None:
    listed = re.findall(r"^  make ([a-z]+) +\S", make(), re.MULTILINE)
    assert listed == ["help", "run", "test", "setup", "lock", "clean"]


def test_make_runs_what_it_says() -> None:
    run, test = make("--dry-run", "run"), make("--dry-run", "test")
    assert run.index("preflight") < run.index("set_up run") < run.index("tokenplace demo")
    for step in ("set_up test", "trio-stubs", "format --check", "ruff check", "mypy", "pytest"):
        assert step in test
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_clean_takes_away_what_the_others_made() -> None:
    cleaned = make("--dry-run", "clean")
    ignored = (ROOT / ".gitignore").read_text("utf-8").split()
    assert ignored
    for pattern in ignored:
        if pattern != "*.log":
            assert pattern.rstrip("/") in cleaned
