"""List the pairs of the registry: what each needs, and whether it fits here."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--registry", help="pairs file; default: config/pairs.yaml")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")


def run(arguments: argparse.Namespace) -> None:
    # Late, so that `--help` and a wrong argument answer at once.
    from specdec.models.loading.loader import resolve_device
    from specdec.models.registry import load_registry
    from specdec.planning.overview import format_overview

    pairs = load_registry(arguments.registry)
    print(format_overview(list(pairs.values()), resolve_device(arguments.device)))
