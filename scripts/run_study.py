"""Run the study: one line says what is being done, how far it is and about how long it takes still.

Snakemake's own words go to a file. On a terminal the line is written over; elsewhere, each job
begins one. What can be checked before Snakemake starts is checked here, for it answers a missing
or broken configuration file with a traceback.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specdec.utils.errors import SpecdecError, cli
from specdec.utils.files import check_writable
from specdec.utils.yaml_reader import read_yaml

LOG = Path("results/logs/study.log")
# With a GPU each job is a process from the start: a fork can not use a device that its parent does.
GPUS = ("/dev/nvidiactl", "/dev/kfd")

JOB = re.compile(r"^(?:local)?rule (\w+):$")
LOG_FILE = re.compile(r"^    log: (\S+)")
JOB_COUNT = re.compile(r"^(\w+) +(\d+)$")
FINISHED = re.compile(r"^Finished jobid: \d+ \(Rule: (\w+)\)$")
EAGER = re.compile(r"engine (eager \(.*)$")


class Progress:
    """What Snakemake's lines say of a run: what is being done, what is done, what is left.

    `left` counts jobs by rule; `seconds` holds how long finished ones took. `logs` are those of the
    jobs that have begun, the latest last.
    """

    def __init__(self, now: float) -> None:
        self.begun = now
        self.left: Counter[str] = Counter()
        self.total = 0
        self.rule: str | None = None
        self.rule_begun = now
        self.logs: list[Path] = []
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._in_counts = False

    def read(self, line: str, now: float) -> bool:
        """Take up a line; whether a job began with it."""
        if line == "Job stats:" and not self.total:
            self._in_counts = True
        elif self._in_counts and (count := JOB_COUNT.match(line)):
            if count[1] == "total":
                self._in_counts, self.total = False, int(count[2]) - self.left.pop("all", 0)
            else:
                self.left[count[1]] = int(count[2])
        elif job := JOB.match(line):
            self.rule, self.rule_begun = job[1], now
        elif log := LOG_FILE.match(line):
            self.logs.append(Path(log[1]))
            return True
        elif (finished := FINISHED.match(line)) and finished[1] in self.left:
            self.left[finished[1]] -= 1
            self.seconds[finished[1]].append(now - self.rule_begun)
            self.rule_begun = now
        return False

    def remaining(self, now: float) -> float | None:
        """Seconds that the jobs left may take, as the finished ones of their rules did.

        None until a decode job is finished: all others are short.
        """
        if self.left["decode"] and not self.seconds["decode"]:
            return None
        known = [second for seconds in self.seconds.values() for second in seconds]
        mean = {rule: sum(times) / len(times) for rule, times in self.seconds.items() if times}
        short = min(mean.values(), default=0.0) if known else 0.0
        expected = sum(count * mean.get(rule, short) for rule, count in self.left.items())
        return max(0.0, expected - (now - self.rule_begun))

    def line(self, now: float) -> str:
        """What is being done, how far the study is, and about how long it takes still."""
        done = self.total - sum(self.left.values())
        left = self.remaining(now)
        time_left = "" if left is None else f", about {clock(left)} left"
        return (
            f"[{done + 1}/{self.total}] {self.doing()} · {clock(now - self.begun)} gone{time_left}"
        )

    def doing(self) -> str:
        """The job that began last, by its log's path: results/logs/decode/micro/code/T0_K0_auto."""
        return str(self.logs[-1].with_suffix("").relative_to("results/logs")).replace("/", " ")


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return lines[-1] if lines else ""


def eager_notice(logs: list[Path]) -> str | None:
    """What to say where a job went on by the eager engine though the fast one was asked for."""
    for log in logs:
        for line in log.read_text(errors="replace").splitlines() if log.exists() else []:
            if eager := EAGER.search(line):
                return f"{log.with_suffix('').relative_to('results/logs/decode')}: {eager[1]}"
    return None


class Display:
    """Writes the line of progress over itself on a terminal, one below the other elsewhere."""

    def __init__(self) -> None:
        self.over = sys.stdout.isatty()

    def say(self, text: str) -> None:
        """A line of its own, that stays."""
        print(f"\r\x1b[K{text}" if self.over else text, flush=True)

    def update(self, text: str) -> None:
        width = shutil.get_terminal_size().columns
        print(f"\r\x1b[K{text[: width - 1]}", end="", flush=True)

    def clear(self) -> None:
        if self.over:
            print("\r\x1b[K", end="", flush=True)


def run_snakemake(arguments: list[str]) -> int:
    """Run the study's workflow; Snakemake's exit code."""
    display, progress = Display(), Progress(time.monotonic())
    LOG.parent.mkdir(parents=True, exist_ok=True)
    command = [Path(sys.executable).with_name("snakemake"), *arguments]
    with LOG.open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        # The terminal sends Ctrl-C to Snakemake too, which ends its jobs and then itself.
        signal.signal(signal.SIGINT, lambda *_: None)
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
        said_eager, errors, nothing = None, [], False
        while True:
            try:
                line = lines.get(timeout=1)
            except queue.Empty:
                line = ""
            if line is None:
                break
            if line:
                log.write(f"{line}\n")
                log.flush()
                nothing |= "Nothing to be done" in line
                if "error: " in line and line not in errors:
                    errors.append(line)
            begins = progress.read(line, time.monotonic())
            if said_eager is None and (said_eager := eager_notice(progress.logs)):
                display.say(f"the eager engine decodes {said_eager}")
            if progress.logs and display.over:
                shown = f"{progress.line(time.monotonic())} · {last_line(progress.logs[-1])}"
                display.update(shown)
            elif begins:
                display.say(progress.line(time.monotonic()))
        code = process.wait()
    display.clear()
    if nothing:
        print("Nothing to be done: every result is there, and up to date")
    if said_eager:
        print(f"The eager engine decoded {said_eager}")
    if code:
        # A failed job's log is shown by Snakemake, and its cause again with the log's name.
        causes = [a for a in errors if not any(a != b and b.endswith(a) for b in errors)]
        for line in causes or LOG.read_text().splitlines()[-12:]:
            print(line, file=sys.stderr)
        print(f"the study stopped; all of it: {LOG}", file=sys.stderr)
    return code


def _read(stream, lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line.rstrip("\n"))
    lines.put(None)


@contextmanager
def job_server() -> Iterator[None]:
    """Jobs that begin during the block are forked from one process that has everything imported."""
    with tempfile.TemporaryDirectory(prefix="specdec-") as folder:
        place = Path(folder) / "jobs"
        command = [sys.executable, Path(__file__).with_name("job_server.py"), place]
        # In a session of its own: Ctrl-C ends the jobs by their clients.
        server = subprocess.Popen(command, start_new_session=True)
        try:
            while not place.exists() and server.poll() is None:
                time.sleep(0.05)
            if server.poll() is None:
                os.environ["SPECDEC_JOB_SERVER"] = str(place)
            yield
        finally:
            os.environ.pop("SPECDEC_JOB_SERVER", None)
            server.terminate()
            server.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", default="1")
    parser.add_argument("--configfile", nargs="*", default=[], help="overlays, left to right")
    arguments = parser.parse_args()
    for file in arguments.configfile:
        if not isinstance(read_yaml(file, "the configuration"), dict):
            raise SpecdecError(f"{file}: holds no keys of a study; see config/README.md")
    for folder in (".snakemake", "results", "figures"):
        check_writable(folder)
    overlays = ["--configfile", *arguments.configfile] if arguments.configfile else []
    command = ["all", "--cores", arguments.cores, *overlays]
    if any(Path(device).exists() for device in GPUS):
        return run_snakemake(command)
    with job_server():
        return run_snakemake(command)


if __name__ == "__main__":
    cli(main)
