"""`specdec COMMAND` (or `python -m specdec COMMAND`): one module of `commands` a command."""

from __future__ import annotations

import argparse

from specdec import __version__
from specdec.commands import bench, certify, generate, pairs, plan
from specdec.utils.errors import cli

COMMANDS = {
    "bench": bench,
    "certify": certify,
    "generate": generate,
    "pairs": pairs,
    "plan": plan,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="specdec", description="Lossless speculative decoding.")
    parser.add_argument("--version", action="version", version=f"specdec {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = module.__doc__.splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args()
    arguments.run(arguments)


def run() -> None:
    """The console command `specdec`."""
    cli(main)


if __name__ == "__main__":
    run()
