"""Runs that are killed, that fail in part, or that meet another one."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable

import pandas as pd
import pytest

from tests.study import DECODED, DRAWN, Study, finished_study, make_project, write_study

pytestmark = pytest.mark.slow

#: Columns that no clock, no memory and no machine's load enter.
TIMELESS = ["pair", "domain", "K", "job_K", "temperature", "prompt_id", "config_hash", "paired"]
TIMELESS += ["prompt_tokens", "num_tokens", "accepted", "proposed", "rounds", "alpha", "tau"]
TIMELESS += ["finish_reason", "matches_baseline", "prompt_source"]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Study:
    return make_project(tmp_path_factory.mktemp("runs") / "project")


def new_study(project: Study, folder) -> Study:
    folder.mkdir()
    write_study(folder)
    return Study(folder, project.project)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.01)


def progress_lines(study: Study, k: int) -> list[str]:
    files = list((study.folder / "results/progress").rglob(f"T0_K{k}_eager.*.jsonl"))
    return [line for file in files for line in file.read_text().splitlines()]


def is_gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def timeless_tables(study: Study) -> list[str]:
    tables = study.folder / "results/tables"
    generations = pd.read_csv(tables / "generations.csv")[TIMELESS]
    return [generations.to_csv(), (tables / "positions.csv").read_text()]


def test_a_killed_study_goes_on_where_it_stopped(project, tmp_path, tmp_path_factory):
    """Killed in the middle of a job, with the timed process left behind; and a torn last line."""
    undisturbed = finished_study(tmp_path_factory)
    killed = new_study(project, tmp_path / "study")
    tables = "results/tables/generations.csv"
    run = killed.start(tables)
    wait_for(lambda: progress_lines(killed, 2), "a first record")
    refused = killed.script("unlock_if_dead.py")
    orphans = children(run.pid)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    assert refused.returncode != 0 and "is alive" in refused.stderr
    wait_for(lambda: all(is_gone(pid) for pid in orphans), "the orphan to stop")
    before = {k: progress_lines(killed, k) for k in (0, 1, 2)}
    assert before[2] and not (killed.folder / "results/tables").exists()
    torn = next((killed.folder / "results/progress").rglob("T0_K2_eager.*.jsonl"))
    with torn.open("a") as file:
        file.write('{"K": 2, "generated_ids": [1, 2')

    assert killed.run(tables)[0] != 0, "the killed run's lock was expected to be there still"
    unlocked = killed.script("unlock_if_dead.py")
    assert unlocked.returncode == 0, unlocked.stderr
    code, output = killed.run(tables)
    assert code == 0, output
    for k, lines in before.items():
        after = progress_lines(killed, k)
        assert after[: len(lines)] == lines, "what was decoded was decoded again"
        assert len(after) == 4 * (1 if k == 0 else 2)
    assert timeless_tables(killed) == timeless_tables(undisturbed)
    assert killed.jobs() == DRAWN


def test_two_runs_never_time_at_once(project, tmp_path):
    """Whoever times holds the machine's lock: while it is held here, a study decodes nothing."""
    study = new_study(project, tmp_path / "study")
    log = study.folder / "results/logs/decode/micro/code/T0_K0_eager.log"
    with open(study.folder / "tmp/specdec-timing.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = study.start("results/runs/micro/code/T0_K0_eager.jsonl", "--cores", "4")
        wait_for(lambda: log.exists() and "waiting" in log.read_text(), "the job to wait")
        assert not progress_lines(study, 0)
        fcntl.flock(lock, fcntl.LOCK_UN)
        output, _ = run.communicate(timeout=240)
    assert run.returncode == 0, output
    assert len(progress_lines(study, 0)) == 4


def test_a_failing_cell_tells_its_cause_and_the_other_cells_are_done(project, tmp_path):
    study = new_study(project, tmp_path / "study")
    (study.folder / "own.yaml").write_text(
        "torn:\n"
        "  draft: {model: torn, dtype: float32}\n"
        "  target: {model: resources/micro/target, dtype: float32}\n"
    )
    draft = study.project / "resources/micro/draft"
    (study.folder / "torn").mkdir()
    for path in draft.iterdir():
        content = path.read_bytes()
        half = content[: len(content) // 2] if path.suffix == ".safetensors" else content
        (study.folder / "torn" / path.name).write_bytes(half)
    with (study.folder / "study.yaml").open("a") as file:
        file.write("registry: own.yaml\n")
    study.edit("study.yaml", "pairs: [micro]", "pairs: [micro, {name: torn, draft_tokens: [2]}]")
    study.edit("study.yaml", "draft_tokens: [1, 2]", "draft_tokens: [1]")

    code, output = study.run("all", "--keep-going")
    assert code != 0
    runs = study.folder / "results/runs"
    done = sorted(str(path.relative_to(runs)) for path in runs.rglob("*.jsonl"))
    assert done == [
        "micro/code/T0_K0_eager.jsonl",
        "micro/code/T0_K1_eager.jsonl",
        "torn/code/T0_K0_eager.jsonl",
    ]
    log = "results/logs/decode/torn/code/T0_K2_eager.log"
    cause = (study.folder / log).read_text().splitlines()[-1]
    assert cause.startswith("error: ")
    assert f"{log}: {cause}" in output.splitlines()
    assert "Traceback" not in output


def test_half_written_files_are_no_results(project, tmp_path):
    """What a kill leaves of a file that was being written lies beside it, under another name."""
    study = new_study(project, tmp_path / "study")
    runs = study.folder / "results/runs/micro/code"
    runs.mkdir(parents=True)
    (runs / ".T0_K2_eager.jsonl.123.tmp").write_text('{"K": 2, "gener')
    assert study.jobs() == {"build_prompts": 1} | DECODED | DRAWN


def test_records_say_what_code_and_settings_made_them(project, tmp_path):
    study = new_study(project, tmp_path / "study")
    study.edit("study.yaml", "max_new_tokens: 48", "max_new_tokens: 4\nthreads: 2\npaired: false")
    code, output = study.run("results/runs/micro/code/T0_K2_eager.jsonl")
    assert code == 0, output
    file = study.folder / "results/runs/micro/code/T0_K2_eager.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["K"] for record in records] == [2] * 4
    for record in records:
        assert record["paired"] is False and record["environment"]["threads"] == 2
        assert len(record["generated_ids"]) <= 4 and len(record["code_digest"]) == 16
