"""Gather the records of all cells into the tables of the study."""

import argparse
from pathlib import Path

from specdec.analysis.tables import write_tables
from specdec.utils.errors import cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="record files, one for each decode job")
    parser.add_argument("--out", required=True, type=Path, help="folder of the tables")
    arguments = parser.parse_args()
    write_tables(arguments.runs, arguments.out)


if __name__ == "__main__":
    cli(main)
