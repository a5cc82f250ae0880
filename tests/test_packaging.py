"""What is installed: the ranges of pyproject.toml, the lock, the conda environment."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import specdec
from specdec.utils.paths import PROJECT_ROOT

PROJECT = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = (PROJECT_ROOT / "requirements/lock.txt").read_text().splitlines()
PINS = dict(line.split("==") for line in LOCK)
#: Import names that differ from the name of their package.
PACKAGES = {"yaml": "pyyaml", "huggingface_hub": "huggingface-hub", "pynvml": "nvidia-ml-py"}


def requirements() -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    return [Requirement(line) for line in lines]


def imported_packages(folders: list[str], late: bool) -> set[str]:
    """Names at the head of the absolute imports in the Python files of some folders.

    Late ones stand in a function, or where only a type checker looks; the others run at once.
    """
    found = set()
    for folder in folders:
        for path in Path(PROJECT_ROOT, folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree) if late else tree.body:
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"specdec"}


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_each_requirement_has_a_tested_version_in_its_range(requirement):
    assert requirement.specifier.contains(PINS[requirement.name])


def test_the_lock_serves_pip_and_conda_the_cpu_and_cuda_builds():
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", line) for line in LOCK)
    assert not [name for name in PINS if name.startswith(("nvidia-cu", "cuda-", "triton"))]
    assert [name for name in PINS if name.startswith("nvidia-")] == ["nvidia-ml-py"]


def test_what_the_package_imports_is_declared():
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    extras = {requirement.name for requirement in requirements()}
    for late, allowed in ((False, declared), (True, extras)):
        imported = imported_packages(["specdec", "scripts"], late)
        assert {PACKAGES.get(name, name) for name in imported} <= allowed


def test_the_extras_are_those_that_the_commands_install():
    assert set(EXTRAS) == {"workflow", "gpu", "ollama", "peers", "smollm2", "test"}
    makefile = (PROJECT_ROOT / "Makefile").read_text()
    assert "LOCK ?= requirements/lock.txt" in makefile
    assert "-c $(LOCK) -e '.[workflow,gpu,test]'" in makefile


def test_the_conda_environment_is_the_same_as_pips():
    environment = yaml.safe_load((PROJECT_ROOT / "environment.yml").read_text())
    python, pip, block = environment["dependencies"]
    assert python == "python=3.11" and pip.startswith("pip")
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains("3.11")
    assert block == {"pip": ["-c requirements/lock.txt", "-e .[workflow,gpu,test]"]}


def test_one_version_is_told_everywhere():
    citation = yaml.safe_load((PROJECT_ROOT / "CITATION.cff").read_text())
    assert specdec.__version__ == PROJECT["version"] == str(citation["version"])
    assert Version(PROJECT["version"])


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy: a build leaves files behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for folder in ("specdec", "config", "resources"):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT_ROOT / folder, source / folder, ignore=unwanted)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(PROJECT_ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(out)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("specdec_study-*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_all_that_the_package_reads(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("specdec", "config", "resources/micro", "resources/micro_other"):
        for file in (PROJECT_ROOT / folder).rglob("*"):
            if file.is_dir() or "__pycache__" in file.parts:
                continue
            path = file.relative_to(PROJECT_ROOT).as_posix()
            assert (path if folder == "specdec" else f"specdec/shipped/{path}") in names
    assert not [name for name in names if "micro_training" in name]
    assert wheel.stat().st_size < 30e6


@pytest.mark.slow
def test_an_installed_wheel_generates_in_an_empty_folder(wheel, tmp_path):
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    options = ["--no-deps", "--quiet", "--target", str(installed)]
    command = [sys.executable, "-m", "pip", "install", *options, str(wheel)]
    subprocess.run(command, check=True, capture_output=True)

    def specdec_command(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, str(installed / "bin/specdec"), *arguments],
            cwd=empty,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(installed)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert specdec_command("--version") == f"specdec {specdec.__version__}\n"
    settings = "--pair micro --max-new-tokens 8 --engine eager --device cpu".split()
    said = specdec_command("generate", *settings, "--prompt", "def f(")
    assert said.startswith("def f(") and "engine: eager" in said
    assert not list(empty.iterdir())
