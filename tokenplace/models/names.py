"""From what an app calls a model to what may answer it. Start at `ModelNames.resolve`.

Pure. Differs from other model registries: the network owns no names, so a name means what this
peer's catalogue and this user's own table say, never what a stranger says (docs/protocol.md,
section 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tokenplace import defaults
from tokenplace.errors import ModelNotFound
from tokenplace.models.catalogue import CATALOGUE, CatalogueModel
from tokenplace.models.syntax import AUTO, is_alias, is_target, parse_pin
from tokenplace.models.table import NO_TABLE, Table

# What apps ask for when nobody told them otherwise. All stand for `auto`, which is a chat model or
# one for embeddings as the request has it.
_SENT_BY_DEFAULT: Final = (
    # token.place's own examples and clients
    *("llama-3-8b-instruct", "llama-3.1-8b-instruct", "gpt-3.5-turbo", "gpt-5-chat-latest"),
    # defaults of SDKs, frameworks and tools that speak OpenAI's API
    *("gpt-3.5-turbo-instruct", "gpt-4", "gpt-4-turbo", "gpt-4o", "gpt-4o-mini"),
    *("gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "gpt-5", "gpt-5-mini", "gpt-5-nano"),
)
EMBEDDING_ALIASES: Final = frozenset(
    {"text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002"}
)
"""Those of the built-in aliases that only ever go with a request for embeddings."""

DEFAULT_ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    dict.fromkeys([*_SENT_BY_DEFAULT, *sorted(EMBEDDING_ALIASES)], AUTO)
)


@dataclass(frozen=True, slots=True)
class NamedModel:
    """One model that may answer.

    artifact: 64 hex digits, the first 12 or more when the app pinned a model not known here, or
    empty when unknown. template: 64 hex digits or empty when unknown. n_params: 0 when unknown.
    """

    name: str
    artifact: str = ""
    template: str = ""
    n_params: int = 0

    def fits(self, artifact: str, template: str) -> bool:
        """Is a served model this one? What it is called does not count."""
        is_artifact = bool(self.artifact) and artifact.startswith(self.artifact)
        return is_artifact and self.template in ("", template)


class ModelNames:
    """The names known here: the user's own models, the catalogue, and aliases."""

    def __init__(
        self, table: Table = NO_TABLE, catalogue: Sequence[CatalogueModel] = CATALOGUE
    ) -> None:
        models = {m.name: NamedModel(m.name, m.artifact, m.template, m.n_params) for m in catalogue}
        for own in table.models.values():
            models[own.name] = NamedModel(own.name, own.artifact, own.template, own.n_params)
        self._models = models
        self._aliases = {**DEFAULT_ALIASES, **table.aliases}

    @property
    def known(self) -> tuple[NamedModel, ...]:
        """Every known model, the largest first: bigger models answer better."""
        return tuple(sorted(self._models.values(), key=lambda model: (-model.n_params, model.name)))

    @property
    def aliases(self) -> Mapping[str, str]:
        """Alias → what it stands for, the user's and the built-in ones."""
        return MappingProxyType(self._aliases)

    def resolve(self, asked: str) -> tuple[NamedModel, ...]:
        """
        The models that may answer for `asked`, best first; never empty. `auto` is every known one:
        the router takes the first that is offered now and can do what the request asks. An alias
        stands for one thing and is not followed further. `name@sha256:HEX` pins an artifact, also
        of a model that is not known here.

        Raises `ModelNotFound`, which says what is known.
        """
        target = asked if asked in self._models else self._aliases.get(asked, asked)
        if target == AUTO and self._models:
            return self.known
        if (model := self._models.get(target)) is not None:
            return (model,)
        if (pin := parse_pin(target)) is not None:
            return (self._pinned(*pin),)
        raise ModelNotFound(_not_found(asked, target), hint=self._hint(asked))

    def _pinned(self, name: str, prefix: str) -> NamedModel:
        model = self._models.get(name)
        if model is not None and model.artifact.startswith(prefix):
            return model
        return NamedModel(name, prefix)

    def _hint(self, asked: str) -> str:
        names = [model.name for model in self.known]
        shown = ", ".join([AUTO, *names[: defaults.MAX_NAMES_IN_HINT]])
        n_more = len(names) - defaults.MAX_NAMES_IN_HINT
        more = f" and {n_more} more" if n_more > 0 else ""
        alias = f"To have the best one answer: `tokenplace models alias {asked} {AUTO}`."
        return (
            f"Known here: {shown}{more}. A donor's exact model can be asked for as NAME@sha256:HEX."
            f"{f' {alias}' if is_alias(asked) else ''}"
        )


def _not_found(asked: str, target: str) -> str:
    # Anything may come from an app; only what looks like a name is repeated.
    if not (is_alias(asked) or is_target(asked)):
        return "A model's name is 1 to 64 characters of a-z, 0-9, '.', '_' and '-'."
    if target != asked:
        return f"{asked} stands for {target} here, which is not known."
    return f"{asked} is not in the catalogue nor in this user's own table."
