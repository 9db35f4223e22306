"""`make run GPU=…`: what is missing is named, and every kind has a build of its own."""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import llama
from scripts.gpu import OPTIONS, GpuFacts, gather_gpu, gpu_problems, wanted_gpu
from scripts.preflight import problems, report
from scripts.set_up import SetUp
from tests.conftest import ROOT
from tests.test_setup import READY

HAS_ALL = GpuFacts(has_nvcc=True, has_glslc=True, has_vulkan_headers=True, has_spirv_headers=True)


# ---------------------------------------------------------------- preflight


@pytest.mark.parametrize(
    ("gpu", "system"),
    [("", "Linux"), ("cuda", "Linux"), ("vulkan", "Linux"), ("metal", "Darwin")],
)
def test_a_machine_that_has_what_it_takes(gpu: str, system: str) -> None:
    facts = replace(READY, system=system, gpu=replace(HAS_ALL, name=gpu))
    assert problems(facts) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cuda", "nvcc"),
        ("metal", "macOS"),
        ("rocm", "choose one of cuda, vulkan, metal"),
        ("x" * 100, "choose one of"),
    ],
)
def test_what_a_gpu_lacks_is_named(name: str, says: str) -> None:
    (problem,) = gpu_problems(GpuFacts(name), "Linux")
    assert f"GPU={name[:32]}" in problem.text
    assert says in problem.text
    assert len(problem.text) < 200


def test_debians_packages_for_vulkan() -> None:
    facts = replace(READY, gpu=GpuFacts("vulkan"))
    text = report(problems(facts), facts)
    assert "apt-get install -y glslc libvulkan-dev spirv-headers" in text
    assert "glslc, the shader compiler" in text


def test_macos_is_let_through_only_for_its_gpu() -> None:
    for gpu in ("", "cuda", "vulkan"):
        facts = replace(READY, system="Darwin", gpu=replace(HAS_ALL, name=gpu))
        assert "Darwin is not supported" in problems(facts)[0].text


def test_tools_are_looked_for_where_they_are(tmp_path: Path) -> None:
    for path in (
        "bin/glslc",
        "nvcc",
        "include/vulkan/vulkan.h",
        "include/spirv/unified1/spirv.hpp",
    ):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    environment = {
        "GPU": " Vulkan ",
        "VULKAN_SDK": str(tmp_path),
        "CUDACXX": str(tmp_path / "nvcc"),
    }
    assert gather_gpu(environment) == replace(HAS_ALL, name="vulkan")
    assert gather_gpu({}).name == wanted_gpu({"GPU": ""}) == ""


# ---------------------------------------------------------------- the build


def test_each_kind_is_built_and_kept_apart(tmp_path: Path) -> None:
    kept = {llama.libraries_of("one", tmp_path, gpu) for gpu in OPTIONS}
    assert len(kept) == len(OPTIONS) == 4
    assert llama.libraries_of("one", tmp_path) in kept
    for gpu, options in OPTIONS.items():
        assert options == ((f"-DGGML_{gpu.upper()}=ON",) if gpu else ())


def test_the_set_up_follows_the_environment(tmp_path: Path) -> None:
    (tmp_path / "requirements").mkdir()
    for path in ("setup.cfg", "pyproject.toml", "requirements/run.lock", "requirements/test.lock"):
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    cpu, cuda = (
        SetUp(tmp_path, "run", {"TOKENPLACE_MODELS_DIR": "models", "GPU": gpu})
        for gpu in ("", "cuda")
    )
    assert cuda.tools.gpu == "cuda"
    assert cpu.wanted().llama != cuda.wanted().llama
    assert replace(cpu.wanted(), llama="") == replace(cuda.wanted(), llama="")


def test_make_hands_the_choice_on() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory", "--eval", "show: ; @echo gpu=$$GPU", "show", "GPU=cuda"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "gpu=cuda\n"
