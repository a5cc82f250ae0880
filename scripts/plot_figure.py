"""Draw one figure of the study from its tables."""

import argparse
from importlib import import_module
from pathlib import Path

from specdec.analysis.figures import style
from specdec.utils.errors import cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="a module of specdec/analysis/figures")
    parser.add_argument("--tables", required=True, type=Path, help="folder of the tables")
    parser.add_argument("--png", required=True, type=Path)
    parser.add_argument("--svg", required=True, type=Path)
    arguments = parser.parse_args()
    figure = import_module(f"specdec.analysis.figures.{arguments.name}")
    style.save(figure.draw(arguments.tables), arguments.png, arguments.svg)


if __name__ == "__main__":
    cli(main)
