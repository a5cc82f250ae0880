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


def test_the_line_says_what_is_being_compiled_and_how_long_that_takes_still():
    """Most of a first study is compiling: the line stood still on the job's name."""
    progress = run_study.Progress(now=0, usual={"decode": 10.0, "a pass of mine": 30.0})
    read(progress, STARTS.splitlines(), 0)
    read(progress, begin("build_prompts", "build_prompts/bytes"), 0)
    read(progress, finish("build_prompts"), 4)
    read(progress, begin("decode", "decode/micro/code/T0_K0_auto"), 4)
    log = "[loader] model\n[compiler] compiling a pass of mine …\n"
    assert progress.look(log, 5) and not progress.look(log, 10)  # it begins once
    log += "[compiler] compiling decisions (greedy) …\n"
    assert progress.look(log, 15)
    told = (
        "compiling a pass of mine: 0:12 of about 0:30, compiling decisions (greedy): 0:02 of about "
    )
    assert progress.compiling_now(17) == told + "0:05"
    # Three decode jobs of 10 s, of which 1 was decoding, the tables like the shortest job (4 s),
    # and 20 s of compiling.
    assert progress.line(15).endswith("0:15 gone, about 0:53 left")
    log += "[compiler] compiled decisions (greedy) in 6 s\n"
    log += "[compiler] compiled a pass of mine in 21 s\n"
    assert not progress.look(log, 25) and progress.compiling_now(25) == ""
    assert progress.pieces == {"a pass of mine": 21.0, "decisions (greedy)": 6.0}
    read(progress, finish("decode"), 35)
    assert progress.means()["decode"] == 11  # 31, without the 20 of compiling


def test_how_long_it_took_is_kept_for_the_next_study(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path / "cache"))
    assert run_study.kept_seconds() == {}
    progress = run_study.Progress(now=0)
    read(progress, [*STARTS.splitlines(), *begin("decode", "decode/a/b/T0_K0_auto")], 0)
    progress.look("[compiler] compiled a pass of mine in 21 s\n", 5)
    read(progress, finish("decode"), 8)
    run_study.keep_seconds("all", progress)
    run_study.keep_seconds("all", run_study.Progress(now=0))  # a study with nothing to be done
    assert run_study.kept_seconds() == {"all": {"decode": 8}, "pieces": {"a pass of mine": 21}}


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
