"""What is installed: the ranges of pyproject.toml, the lock, the conda environment."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
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
PACKAGES = {"yaml": "pyyaml", "huggingface_hub": "huggingface-hub"}


def requirements() -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    return [Requirement(line) for line in lines]


def imported_packages(folders: list[str]) -> set[str]:
    """Names at the head of every absolute import in the Python files of some folders."""
    found = set()
    for folder in folders:
        for path in Path(PROJECT_ROOT, folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names)


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_each_requirement_has_a_tested_version_in_its_range(requirement):
    assert requirement.specifier.contains(PINS[requirement.name])


def test_the_lock_serves_pip_and_conda_the_cpu_and_cuda_builds():
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", line) for line in LOCK)
    assert not [name for name in PINS if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_what_the_package_imports_is_declared():
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    imported = imported_packages(["specdec", "scripts"]) - {"specdec", "bitsandbytes"}
    assert {PACKAGES.get(name, name) for name in imported} <= declared


def test_the_extras_are_those_that_the_commands_install():
    assert set(EXTRAS) == {"workflow", "gpu", "smollm2", "test"}
    makefile = (PROJECT_ROOT / "Makefile").read_text()
    assert "-c requirements/lock.txt -e '.[workflow,gpu,test]'" in makefile


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


def test_the_builtin_prompts_are_part_of_the_package():
    tool = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["tool"]
    pattern = tool["setuptools"]["package-data"]["specdec.data"][0]
    assert len(list((PROJECT_ROOT / "specdec/data").glob(pattern))) == 3
