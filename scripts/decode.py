"""Run one decode job: read a prompt set, decode it with one pair at one K, write the records."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from specdec.utils.errors import SpecdecError, cli
from specdec.utils.logging import get_logger
from specdec.utils.reproducibility import exclusive_lock, set_threads

log = get_logger("decode")

# One for the machine, not for the folder: two studies side by side must not time at once either.
TIMING_LOCK = Path(tempfile.gettempdir()) / "specdec-timing.lock"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", required=True)
    parser.add_argument("--registry", help="pairs file; default: config/pairs.yaml")
    parser.add_argument("--prompts", required=True, type=Path)
    parser.add_argument("--domain", required=True)
    parser.add_argument("--k", required=True, type=int, help="draft tokens; 0 is the baseline")
    parser.add_argument("--temperature", required=True, type=float)
    parser.add_argument("--engine", required=True, help="eager, compiled or auto")
    parser.add_argument(
        "--settings",
        required=True,
        type=json.loads,
        help="JSON: max_new_tokens, synthetic_acceptance, seed, paired, device, threads",
    )
    parser.add_argument("--progress", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument(
        "--stop-with-parent",
        action="store_true",
        help="stop at the next prompt when the process that started this one is gone",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    settings = arguments.settings
    parent = os.getppid()

    def check_wanted() -> None:
        if arguments.stop_with_parent and os.getppid() != parent:
            raise SpecdecError(
                "the workflow that started this job is gone; what was decoded is kept in "
                f"{arguments.progress}, start the workflow again to go on"
            )

    set_threads(settings["threads"])

    # Imported after the thread count is set, which torch reads when it is loaded.
    from specdec.data.dataset import PromptDataset
    from specdec.models.registry import get_pair
    from specdec.study.job import Job, run_job

    dataset = PromptDataset.load(arguments.prompts)
    job = Job(
        pair=get_pair(arguments.pair, arguments.registry),
        domain=arguments.domain,
        K=arguments.k,
        temperature=arguments.temperature,
        engine=arguments.engine,
        synthetic_acceptance=settings["synthetic_acceptance"],
        max_new_tokens=settings["max_new_tokens"],
        seed=settings["seed"],
        paired=settings["paired"],
        device=settings["device"],
        prompt_source=dataset.source(arguments.domain),
    )
    with exclusive_lock(TIMING_LOCK, on_wait=lambda: log.info("waiting for another timed job")):
        check_wanted()
        run_job(
            job,
            dataset.get_by_domain(arguments.domain),
            arguments.progress,
            arguments.out,
            check_wanted,
        )


if __name__ == "__main__":
    cli(main)
