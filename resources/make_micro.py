"""Make the embedded models again: `python resources/make_micro.py`.

Reads `micro_training/recipe.yaml`, works in `<out>/.work` (delete it to start afresh) and resumes
where it stopped. At its end `<out>/micro` and `<out>/micro_other` hold the models and a
`training.json` each.
"""

import argparse
import ctypes
import json
import os
from pathlib import Path

HERE = Path(__file__).resolve().parent
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder for the models (default: this one)"
    )
    parser.add_argument("--work", type=Path, help="folder for checkpoints (default: <out>/.work)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--evaluate", action="store_true", help="measure the models in <out> and print the figures"
    )
    parser.add_argument(
        "--prompts", type=Path, help="with --evaluate: also use the prompts of this JSONL file"
    )
    return parser.parse_args()


def keep_freed_memory() -> None:
    """Let glibc reuse large buffers: returning them cost a tenth of a step in page faults."""
    if os.name == "posix" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def main() -> None:
    arguments = parse_arguments()
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    keep_freed_memory()
    from micro_training.pipeline import Workshop, make_all  # after the thread count is set
    from micro_training.report import evaluate

    work = arguments.work or arguments.out / ".work"
    shop = Workshop(work, arguments.threads, arguments.device)
    if arguments.evaluate:
        print(json.dumps(evaluate(shop, arguments.out, arguments.prompts), indent=1))
    else:
        make_all(shop, arguments.out)


if __name__ == "__main__":
    main()
