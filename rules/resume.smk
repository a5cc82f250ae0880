"""Copied results, runs that were killed, jobs that failed: what is left of them, and what to say."""

import fcntl
import time

STARTED = time.time()


def order_copied_results():
    """Give results that came without Snakemake's memory of them the order they were made in.

    Snakemake then has only times to go by, and a plain copy gives files the times of the copying.
    """
    if not any(Path(".snakemake").glob("metadata/*")):
        for stage in ("results/prompts", "results/runs", "results/tables", "figures"):
            now = time.time()
            for path in Path(stage).rglob("*"):
                os.utime(path, (now, now))


def print_causes():
    """A line for each job that failed in this run: its log, and the cause at the log's end."""
    for log in sorted(Path("results/logs").rglob("*.log")):
        last = (log.read_text(errors="replace").splitlines() or [""])[-1]
        if log.stat().st_mtime >= STARTED and last.startswith("error: "):
            print(f"{log}: {last}", file=sys.stderr)


# Held while this process lives, so that `make study` can tell a run from what a killed one left.
Path(".snakemake").mkdir(exist_ok=True)
alive = open(".snakemake/alive", "a")
fcntl.flock(alive, fcntl.LOCK_SH)

order_copied_results()
