"""Draw figures of the study from its tables: one, or all that are named in one process."""

import argparse
from importlib import import_module
from pathlib import Path

from specdec.analysis.figures import style
from specdec.utils.errors import cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", metavar="name", help="of specdec/analysis/figures")
    parser.add_argument("--tables", required=True, type=Path, help="folder of the tables")
    parser.add_argument("--png", required=True, type=Path, nargs="+", help="a file for each figure")
    parser.add_argument("--svg", required=True, type=Path, nargs="+", help="a file for each figure")
    parser.add_argument("--pairs", nargs="*", default=[], help="their order in the figures")
    arguments = parser.parse_args()
    if not len(arguments.names) == len(arguments.png) == len(arguments.svg):
        parser.error("as many --png and as many --svg files as figures are needed")
    for name, png, svg in zip(arguments.names, arguments.png, arguments.svg, strict=True):
        figure = import_module(f"specdec.analysis.figures.{name}")
        style.save(figure.draw(arguments.tables, arguments.pairs), png, svg)


if __name__ == "__main__":
    cli(main)
