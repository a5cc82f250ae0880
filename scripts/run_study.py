"""Run the study: one line says what is being done, how far it is and about how long it takes still.

Snakemake's own words go to a file. On a terminal the line is written over; elsewhere, each job
begins one. What can be checked before Snakemake starts is checked here, for it answers a missing
or broken configuration file with a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
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

from specdec.utils.cache import cache_folder
from specdec.utils.errors import SpecdecError, cli
from specdec.utils.files import atomic_write, check_writable
from specdec.utils.yaml_reader import read_yaml

LOG = Path("results/logs/study.log")
SECONDS = "usual_seconds.json"  # in the cache
# With a GPU each job is a process from the start: a fork can not use a device that its parent does.
GPUS = ("/dev/nvidiactl", "/dev/kfd")

JOB = re.compile(r"^(?:local)?rule (\w+):$")
LOG_FILE = re.compile(r"^    log: (\S+)")
JOB_COUNT = re.compile(r"^(\w+) +(\d+)$")
FINISHED = re.compile(r"^Finished jobid: \d+ \(Rule: (\w+)\)$")
EAGER = re.compile(r"engine (eager \(.*)$")
COMPILING = re.compile(r"^\[compiler\] compiling (.*) …$", re.M)
COMPILED = re.compile(r"^\[compiler\] compiled (.*) in (\d+) s$", re.M)

# Seconds that a piece takes to compile, by how its name begins, where it is the first time here.
USUAL = {"a pass of": 20.0, "decisions": 5.0, "a draft's choice": 5.0}


class Progress:
    """What Snakemake's lines say of a run: what is being done, what is done, what is left.

    `left` counts jobs by rule; `seconds` holds how long finished ones took, without what was
    compiled meanwhile. `logs` are those of the jobs that have begun, the latest last. `compiling`
    holds when each piece began that is being compiled, `usual` how long rules' jobs and pieces took
    the last time, in an earlier study too.
    """

    def __init__(self, now: float, usual: dict[str, float] | None = None) -> None:
        self.begun = now
        self.usual = dict(usual or {})
        self.pieces: dict[str, float] = {}  # how long they took to compile
        self.compiling: dict[str, float] = {}
        self._compiled: set[str] = set()  # in the job's log
        self._stood_still = 0.0  # seconds of the job in which something was compiled
        self._looked = now
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
            self.rule = job[1]
            self._begin(now)
        elif log := LOG_FILE.match(line):
            self.logs.append(Path(log[1]))
            return True
        elif (finished := FINISHED.match(line)) and finished[1] in self.left:
            self.left[finished[1]] -= 1
            self.seconds[finished[1]].append(self._worked(now))
            self._begin(now)
        return False

    def _begin(self, now: float) -> None:
        self.rule_begun, self._looked, self._stood_still = now, now, 0.0
        self.compiling.clear()
        self._compiled.clear()

    def _worked(self, now: float) -> float:
        """Seconds of the job in which nothing was compiled."""
        return now - self.rule_begun - self._stood_still

    def look(self, log: str, now: float) -> bool:
        """Take up what the job's log says of compiling; whether another piece began to be."""
        if self.compiling:
            self._stood_still += now - self._looked
        self._looked = now
        for piece, seconds in COMPILED.findall(log):
            self.pieces[piece] = float(seconds)
            self.compiling.pop(piece, None)
            self._compiled.add(piece)
        new = set(COMPILING.findall(log)) - set(self.compiling) - self._compiled
        self.compiling |= dict.fromkeys(sorted(new), now)
        return bool(new)

    def remaining(self, now: float) -> float | None:
        """Seconds that the jobs left may take, as the finished ones of their rules did, or did in
        an earlier study; and what is being compiled.

        None until a decode job is finished, if there is no such study: all others are short.
        """
        if self.left["decode"] and not (self.seconds["decode"] or "decode" in self.usual):
            return None
        mean = self.usual | self.means()
        known = [mean[rule] for rule in self.left if rule in mean]
        short = min(known, default=0.0)
        jobs = sum(count * mean.get(rule, short) for rule, count in self.left.items())
        compiling = [self._usual(piece) - now + begun for piece, begun in self.compiling.items()]
        return max(0.0, jobs - self._worked(now)) + max([0.0, *compiling])

    def means(self) -> dict[str, float]:
        """How long a job of each rule took."""
        return {rule: sum(times) / len(times) for rule, times in self.seconds.items() if times}

    def _usual(self, piece: str) -> float:
        """How long a piece takes to compile: as the last time, else as its kind does."""
        kinds = (seconds for kind, seconds in USUAL.items() if piece.startswith(kind))
        return self.usual.get(piece) or next(kinds, 0.0)

    def line(self, now: float) -> str:
        """What is being done, how far the study is, and about how long it takes still."""
        done = self.total - sum(self.left.values())
        left = self.remaining(now)
        time_left = "" if left is None else f", about {clock(left)} left"
        return (
            f"[{done + 1}/{self.total}] {self.doing()} · {clock(now - self.begun)} gone{time_left}"
        )

    def compiling_now(self, now: float) -> str:
        """Each piece that is being compiled, since when, and how long it usually takes."""
        return ", ".join(
            f"compiling {piece}: {clock(now - begun)} of about {clock(self._usual(piece))}"
            for piece, begun in self.compiling.items()
        )

    def doing(self) -> str:
        """The job that began last, by its log's path: results/logs/decode/micro/code/T0_K0_auto."""
        return str(self.logs[-1].with_suffix("").relative_to("results/logs")).replace("/", " ")


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def text_of(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def last_line(text: str) -> str:
    return (text.splitlines() or [""])[-1]


def kept_seconds() -> dict[str, dict[str, float]]:
    """How long the jobs of each study took the last time, and what was compiled ("pieces")."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((cache_folder() / SECONDS).read_text())
    return {}


def keep_seconds(study: str, progress: Progress) -> None:
    """Keep them for the next study; where nothing can be kept, it knows less."""
    kept = kept_seconds()
    for name, new in ((study, progress.means()), ("pieces", progress.pieces)):
        kept[name] = kept.get(name, {}) | new
    with contextlib.suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        with atomic_write(cache_folder() / SECONDS) as file:
            json.dump(kept, file)


def eager_notice(logs: list[Path]) -> str | None:
    """What to say where a job went on by the eager engine though the fast one was asked for."""
    for log in logs:
        for line in text_of(log).splitlines():
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
    study = " ".join(arguments)
    kept = kept_seconds()
    usual = kept.get("pieces", {}) | kept.get(study, {})
    display, progress = Display(), Progress(time.monotonic(), usual)
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
            job_log = text_of(progress.logs[-1]) if progress.logs else ""
            compiles = progress.look("" if begins else job_log, now := time.monotonic())
            told = progress.compiling_now(now)
            if progress.logs and display.over:
                display.update(f"{progress.line(now)} · {told or last_line(job_log)}")
            elif begins or compiles:
                display.say(f"{progress.line(now)} · {told}" if told else progress.line(now))
        code = process.wait()
    display.clear()
    keep_seconds(study, progress)
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
