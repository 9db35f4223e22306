"""Building llama.cpp for a GPU: `make run GPU=cuda`, `vulkan` or `metal`. Start at `gpu_problems`.

Runs on Python 3.8, as preflight does. Differs from llama.cpp's own build files, which fail half-way
with a page of CMake: what is missing is looked for first, and named.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OPTIONS = {
    "": (),
    "cuda": ("-DGGML_CUDA=ON",),
    "vulkan": ("-DGGML_VULKAN=ON",),
    "metal": ("-DGGML_METAL=ON",),
}
_CUDA_FOLDER = Path("/usr/local/cuda")  # NVIDIA's installer; CMake looks there too


@dataclass(frozen=True)
class Problem:
    """text: for a person. packages: Debian packages that mend it, if any do."""

    text: str
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class GpuFacts:
    """What this machine has for such a build. name: as a person gave it, empty for none."""

    name: str = ""
    has_nvcc: bool = False
    has_glslc: bool = False
    has_vulkan_headers: bool = False
    has_spirv_headers: bool = False


NO_GPU = GpuFacts()


def wanted_gpu(environment: Mapping[str, str]) -> str:
    """The kind of GPU that somebody asked for; empty for none."""
    return environment.get("GPU", "").strip().lower()


def gather_gpu(environment: Mapping[str, str]) -> GpuFacts:
    """Look at this machine. Reads only."""
    sdk = environment.get("VULKAN_SDK", "")
    includes = [Path("/usr/include"), Path("/usr/local/include")]
    includes += [Path(sdk) / "include"] if sdk else []
    return GpuFacts(
        name=wanted_gpu(environment),
        has_nvcc=_has_nvcc(environment),
        has_glslc=any(map(shutil.which, ("glslc", os.path.join(sdk, "bin", "glslc")))),
        has_vulkan_headers=any((i / "vulkan" / "vulkan.h").is_file() for i in includes),
        has_spirv_headers=any((i / "spirv/unified1/spirv.hpp").is_file() for i in includes),
    )


def _has_nvcc(environment: Mapping[str, str]) -> bool:
    places = (environment.get("CUDACXX", ""), "nvcc", str(_CUDA_FOLDER / "bin" / "nvcc"))
    return any(shutil.which(place) for place in places if place)


def gpu_problems(facts: GpuFacts, system: str) -> list[Problem]:
    """What stands in the way of a build for this GPU on this system."""
    if facts.name not in OPTIONS:
        known = ", ".join(name for name in OPTIONS if name)
        return [Problem(f"GPU={facts.name[:32]} is unknown: choose one of {known}.")]
    if facts.name == "metal" and system != "Darwin":
        return [Problem("GPU=metal is for macOS; here choose cuda or vulkan.")]
    if facts.name == "cuda" and not facts.has_nvcc:
        return [
            Problem(
                "GPU=cuda needs nvcc, which was not found. Install NVIDIA's CUDA toolkit, and put "
                "its bin folder on the PATH."
            )
        ]
    if facts.name != "vulkan":
        return []
    found = (
        (facts.has_glslc, "glslc, the shader compiler", "glslc"),
        (facts.has_vulkan_headers, "vulkan/vulkan.h", "libvulkan-dev"),
        (facts.has_spirv_headers, "spirv/unified1/spirv.hpp", "spirv-headers"),
    )
    return [
        Problem(f"GPU=vulkan needs {what} (LunarG's Vulkan SDK has it too).", (package,))
        for is_there, what, package in found
        if not is_there
    ]
