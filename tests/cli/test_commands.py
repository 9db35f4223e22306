"""Commands that need no running peer: words, exit status, and no traceback whatever is typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.dht.donating import identity_of
from tokenplace import __version__

ALICE, BOB = identity_of("alice").peer_id, identity_of("bob").peer_id


def run(
    *arguments: str, home: Path | None = None, config: str = "/dev/null"
) -> subprocess.CompletedProcess[str]:
    place = [] if home is None else ["--home", str(home)]
    return subprocess.run(
        [sys.executable, "-m", "tokenplace", "--config", config, *arguments, *place],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """What a refused command said: one error line and hints, no traceback."""
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    return result.stderr


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from tokenplace.cli.app import app\n"
        "try: app(['up', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'libp2p', 'trio', 'httpx', 'fastapi', 'llama_cpp', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--donate" in result.stdout
    assert run("--version").stdout.strip() == f"tokenplace {__version__}"


@pytest.mark.parametrize(
    "command", [["peer", "status"], ["peer", "invite"], ["chat", "hello"]], ids=" ".join
)
def test_without_a_running_peer_there_is_one_line_and_a_hint(
    command: list[str], tmp_path: Path
) -> None:
    said = refused(run(*command, home=tmp_path))
    assert "no peer runs in" in said
    assert "tokenplace up" in said


def test_aliases_are_shown_set_and_removed(tmp_path: Path) -> None:
    assert "gpt-3.5-turbo -> auto  (built in)" in run("models", "alias", home=tmp_path).stdout
    alias = ["models", "alias", "gpt-3.5-turbo"]
    assert run(*alias, "smollm2-135m-instruct", home=tmp_path).returncode == 0
    shown = run("models", "alias", home=tmp_path).stdout
    assert "gpt-3.5-turbo -> smollm2-135m-instruct\n" in shown
    assert "auto again" in run(*alias, "--remove", home=tmp_path).stderr
    assert "gpt-3.5-turbo -> auto" in run("models", "alias", home=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["a b", "auto"], "cannot be an alias"),
        (["mine", "No Such!"], "neither a model's name"),
        (["mine"], "what shall it stand for"),
        (["mine", "--remove"], "not an alias of this user's own"),
    ],
)
def test_bad_aliases_are_refused(arguments: list[str], problem: str, tmp_path: Path) -> None:
    assert problem in refused(run("models", "alias", *arguments, home=tmp_path))


def test_donors_are_trusted_shown_and_no_longer_trusted(tmp_path: Path) -> None:
    trust = ["peer", "trust"]
    assert run(*trust, home=tmp_path).stdout.startswith("from this peer's own models and trusted")
    said = run(*trust, ALICE, "--name", "laptop", home=tmp_path)
    assert said.returncode == 0
    assert "carry out" in said.stderr
    assert run(*trust, f"/ip4/192.168.1.7/tcp/4010/p2p/{BOB}", home=tmp_path).returncode == 0
    assert run(*trust, home=tmp_path).stdout.splitlines()[1:] == [f"{ALICE}  laptop", BOB]
    assert run(*trust, BOB, "--remove", home=tmp_path).returncode == 0
    shown = run(*trust, "--tools-from", "any", "--list", home=tmp_path).stdout
    assert shown.splitlines() == ["from anybody, trusted or not", f"{ALICE}  laptop"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["alice"], "no peer id"),
        ([BOB, "--remove"], "not among the trusted"),
        (["--remove"], "which peer?"),
        (["--name", "laptop"], "which peer?"),
        (["--tools-from", "friends"], "trusted, any"),
        ([BOB, "--name", "x" * 65], "cannot be called"),
    ],
)
def test_trust_that_cannot_be_is_refused(
    arguments: list[str], problem: str, tmp_path: Path
) -> None:
    assert problem in refused(run("peer", "trust", *arguments, home=tmp_path))


def test_models_are_listed(tmp_path: Path) -> None:
    shown = run("models", "list", home=tmp_path).stdout
    assert "smollm2-135m-instruct" in shown
    assert "b179c9523d0e" in shown


def test_a_model_is_not_fetched_without_being_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENPLACE_MODELS_DIR", str(tmp_path / "models"))
    said = refused(run("models", "pull", "smollm2-135m-instruct", home=tmp_path))
    assert "--yes" in said


@pytest.mark.parametrize("source", ["hf:nobody", "no-such-model", "ftp://x/y.gguf"])
def test_a_source_that_cannot_be_is_refused(source: str, tmp_path: Path) -> None:
    assert "Hugging Face" in refused(run("models", "pull", source, home=tmp_path))


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_text("{")
    said = refused(run("models", "list", home=tmp_path))
    assert str(tmp_path / "models.json") in said


def test_a_damaged_or_missing_config_is_named(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    assert "no such file" in refused(run("models", "list", home=tmp_path, config=str(config)))
    config.write_text("[up\n")
    said = refused(run("models", "list", home=tmp_path, config=str(config)))
    assert f"{config}: not valid TOML" in said


def test_the_config_file_sets_what_flags_do_not(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[up]\nbootstrap = ["/ip4/1.2.3.4/tcp/1"]\napi_port = 0\n')
    said = refused(run("up", home=tmp_path / "home", config=str(config)))
    assert "/ip4/1.2.3.4/tcp/1" in said, "read from the file, and refused"
    assert "/p2p/" in said


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("up = 3", "up is not a section"),
        ("[nonsense]", "no command is called 'nonsense'"),
        ("[up]\napiport = 1", "up has no option 'apiport'"),
        ('[up]\ndonate = "tiny"', "donate must be a list"),
        ("[up]\napi_port = [1]", "api_port must be one value"),
        ("[peer]\nstatus = 1", "peer.status is not a section"),
        ("[peer.status]\njson = true", "peer.status has no option 'json'"),
    ],
)
def test_what_the_config_file_cannot_set_is_named(text: str, problem: str, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(text)
    said = refused(run("models", "list", home=tmp_path, config=str(config)))
    assert said.startswith(f"error: {config}: ")
    assert problem in said


def test_a_log_level_that_does_not_exist_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENPLACE_LOG", "loud")
    assert "WARNING" in refused(run("up", home=tmp_path))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--no-api"], "nothing to do"),
        (["--bootstrap", "nonsense"], "nonsense"),
        (["--listen", "/ip4/127.0.0.1/udp/1"], "not an address to listen on"),
        (["--network", "Ma in"], "network"),
        (["--api-port", "99999"], "api-port"),
        (["--donate", "no-such-model"], "no-such-model"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    arguments: list[str], problem: str, tmp_path: Path
) -> None:
    assert problem in refused(run("up", "--api-port", "0", *arguments, home=tmp_path))


def test_a_home_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be used as home" in refused(run("up", home=tmp_path / "file" / "home"))
    assert "too long" in refused(run("up", home=tmp_path / ("x" * 120)))
