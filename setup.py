"""What pyproject.toml can't say: a wheel holds the registry, the schemas, the shapes and the
embedded models, which lie beside the package in a checkout."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("config", "resources/micro", "resources/micro_other")


class BuildWithShippedFiles(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # which reads the checkout's own
            return
        for folder in SHIPPED:
            target = Path(self.build_lib, "specdec/shipped", folder)
            shutil.copytree(folder, target, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithShippedFiles})
