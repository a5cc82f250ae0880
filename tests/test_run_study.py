"""scripts/run_study.py: what is checked before Snakemake starts, and the line that says how far."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from specdec.utils.paths import PROJECT_ROOT

SCRIPT = PROJECT_ROOT / "scripts/run_study.py"
SPEC = importlib.util.spec_from_file_location("run_study", SCRIPT)
run_study = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(run_study)

STARTS = """\
Job stats:
job                count
---------------  -------
all                    1
build_prompts          1
decode                 3
make_tables            1
total                  6
"""


def begin(rule: str, log: str) -> list[str]:
    return ["[Sat Nov 28 01:00:00 2026]", f"rule {rule}:", f"    log: results/logs/{log}.log"]


def finish(rule: str) -> list[str]:
    return [f"Finished jobid: 7 (Rule: {rule})", "1 of 6 steps (17%) done"]


def read(progress, lines, now: float) -> int:
    """How many jobs began with these lines."""
    return sum(progress.read(line, now) for line in lines)


def test_the_line_says_what_is_done_how_far_and_how_long_still():
    progress = run_study.Progress(now=0)
    assert read(progress, STARTS.splitlines(), 1) == 0
    assert read(progress, begin("build_prompts", "build_prompts/bytes"), 2) == 1
    read(progress, finish("build_prompts"), 6)
    assert read(progress, begin("decode", "decode/micro/code/T0_K0_auto"), 6) == 1
    # Nobody knows how long a decode job takes before one is done.
    assert progress.line(20) == "[2/5] decode micro code T0_K0_auto · 0:20 gone"
    read(progress, finish("decode"), 36)
    read(progress, begin("decode", "decode/micro/code/T0_K2_auto"), 36)
    # Two more of 30 s, of which 10 are gone, and the tables: like the shortest rule, 4 s.
    assert progress.line(46) == "[3/5] decode micro code T0_K2_auto · 0:46 gone, about 0:54 left"


def test_a_job_that_fell_back_to_the_eager_engine_is_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = run_study.Path("results/logs/decode/micro/code/T0_K0_auto.log")
    log.parent.mkdir(parents=True)
    log.write_text("[job] K = 0: engine compiled, prepared in 1.0 s\n")
    assert run_study.eager_notice([log]) is None
    log.write_text("[job] K = 0: engine eager (no C++ compiler), prepared in 0.0 s\n")
    notice = "micro/code/T0_K0_auto: eager (no C++ compiler), prepared in 0.0 s"
    assert run_study.eager_notice([log]) == notice


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "study.yaml: cannot read the configuration (No such file or directory)"),
        (b"\x80\x81", "study.yaml: not YAML: no text in UTF-8"),
        (b"seed: 1\nseed: 2\n", "study.yaml, line 2: 'seed' is there already, in line 1"),
        (b"- micro\n", "study.yaml: holds no keys of a study"),
    ],
    ids=["missing", "binary", "twice", "list"],
)
def test_a_broken_configuration_file_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "study.yaml").write_bytes(content)
    run = study(tmp_path, "--configfile", "study.yaml")
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith(f"error: {message}") and run.stderr.count("\n") == 1


def test_results_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / "results").write_text("a file")
    run = study(tmp_path)
    assert run.returncode == 2
    assert run.stderr.startswith("error: results: nothing can be written there (it is no folder)")
    assert run.stderr.count("\n") == 1


def study(folder, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
