"""Examine a pair on this machine: is what it emits what its target emits?"""

from __future__ import annotations

import argparse
from pathlib import Path

from specdec.commands.arguments import check_numbers

FOLDER = Path("results/certificates")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", required=True, help="name in the registry, e.g. micro")
    parser.add_argument("--registry", help="pairs file; default: config/pairs.yaml")
    parser.add_argument(
        "--prompts", type=Path, help="prompt file, JSON or JSON lines; default: built-in prompts"
    )
    parser.add_argument(
        "--field", default="text", help="the text in a record of --prompts; default: text"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="of the processor: as many as decode later; a study and bench take 1 unless told",
    )
    parser.add_argument("--engine", default="auto", choices=["eager", "compiled", "auto"])


def run(arguments: argparse.Namespace) -> None:
    check_numbers(arguments, least_k=1)

    # Late, so that `--help` and a wrong argument answer at once.
    import json

    from specdec.utils.errors import SpecdecError
    from specdec.utils.files import atomic_write, check_output

    path = FOLDER / f"{arguments.pair}_{arguments.engine}.json"
    check_output(path)
    if arguments.prompts:
        try:
            arguments.prompts.open().close()
        except OSError as error:
            raise SpecdecError(
                f"--prompts: {arguments.prompts} can't be read ({error.strerror})"
            ) from error

    from specdec.certification.certificate import examine
    from specdec.certification.page import format_page
    from specdec.utils.reproducibility import set_threads

    set_threads(arguments.threads)
    certificate = examine(
        arguments.pair,
        arguments.registry,
        arguments.prompts,
        arguments.field,
        arguments.device,
        arguments.engine,
    )
    page = format_page(certificate)
    print(page)
    with atomic_write(path) as file:
        json.dump(certificate, file, indent=2, ensure_ascii=False)
        file.write("\n")
    with atomic_write(path.with_suffix(".md")) as file:
        file.write(page)
    if certificate["verdict"] == "defect":
        broken = [part for part in ("greedy", "sampling", "rule") if _is_broken(certificate[part])]
        raise SpecdecError(
            f"{arguments.pair}: defect ({', '.join(broken)}): its output is not its target's; "
            f"{path.with_suffix('.md')} says where"
        )
    print(f"{arguments.pair}: pass: its output is its target's ({path.with_suffix('.md')})")


def _is_broken(part: dict) -> bool:
    return part["verdict"] == "defect"
