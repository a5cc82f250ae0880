"""What makes which job run again: a small study is run once, then planned after each change."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable

import pytest

from tests.study import DECODED, DRAWN, Study, finished_study, make_project

pytestmark = pytest.mark.slow

ALL_CELLS = DECODED | DRAWN
EVERYTHING = {"build_prompts": 1} | ALL_CELLS


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Study:
    return finished_study(tmp_path_factory)


@pytest.fixture
def study(finished, tmp_path):
    """The finished study; what a test edits is put back as it was, times included."""
    edited = ("specdec", "config", "resources", "study.yaml", "prompts.jsonl")
    for name in edited:
        source = finished.folder / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, tmp_path / name)
    yield finished
    for name in edited:
        place = finished.folder / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        shutil.move(tmp_path / name, place)


def edit_talk(study: Study) -> None:
    study.edit("specdec/decoding/speculative.py", '"""', '"""Reworded. ')
    study.edit("specdec/decoding/speculative.py", "\nclass ", "\n# A comment.\nclass ")
    study.edit("specdec/study/job.py", "%s: %d of %d prompts", "%s (%d of %d prompts)")


def touch_everything(study: Study) -> None:
    for path in study.folder.rglob("*"):
        if ".snakemake" not in path.parts and "results" not in path.parts:
            path.touch()


def edit_engine(study: Study) -> None:
    study.edit("specdec/study/job.py", "WARM_UP_TOKENS = ", "WARM_UP_TOKENS = 1 + ")


def edit_figure(study: Study) -> None:
    study.edit("specdec/analysis/figures/latency_cdf.py", "\nfrom ", "\nimport os\nfrom ")


def edit_tables(study: Study) -> None:
    study.edit("specdec/analysis/cells.py", "\nfrom ", "\nimport os\nfrom ")


def add_k(study: Study) -> None:
    study.edit("study.yaml", "draft_tokens: [1, 2]", "draft_tokens: [1, 2, 4]")


def add_engine(study: Study) -> None:
    study.edit("study.yaml", "engine: eager", "engine: [eager, compiled]")


def force_acceptance(study: Study) -> None:
    study.edit("study.yaml", "engine: eager", "engine: eager\nsynthetic_acceptance: 0.8")


def change_another_pair(study: Study) -> None:
    study.edit("config/pairs.yaml", "{ model: gpt2, dtype: float16 }", "{ model: o, dtype: int4 }")


def change_notes(study: Study) -> None:
    study.edit("config/pairs.yaml", "notes: Embedded pair", "notes: The embedded pair")


def change_dtype(study: Study) -> None:
    study.edit("config/pairs.yaml", "micro/draft, dtype: float32", "micro/draft, dtype: bfloat16")


def change_threads(study: Study) -> None:
    study.edit("study.yaml", "pairs:", "threads: 2\npairs:")


def change_source(study: Study) -> None:
    study.edit("prompts.jsonl", "add_0", "sum_0")


def change_weights(study: Study) -> None:
    path = study.folder / "resources/micro/draft/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CHANGES: list[tuple[Callable[[Study], None], dict[str, int]]] = [
    (lambda study: None, {}),
    (edit_talk, {}),
    (touch_everything, {}),
    (change_another_pair, {}),
    (change_notes, {}),
    (edit_figure, {"plot_latency_cdf": 1}),
    (edit_tables, {"make_tables": 1} | DRAWN),
    (edit_engine, ALL_CELLS),
    (add_k, ALL_CELLS | {"decode": 1}),
    (add_engine, ALL_CELLS),  # the other engine's three, none of this one's
    (force_acceptance, ALL_CELLS),
    (change_dtype, ALL_CELLS),
    (change_weights, ALL_CELLS),
    (change_threads, ALL_CELLS),
    (change_source, EVERYTHING),
]


@pytest.mark.parametrize(("change", "jobs"), CHANGES, ids=[c.__name__ for c, _ in CHANGES])
def test_a_change_reruns_what_it_concerns_and_nothing_else(study, change, jobs):
    change(study)
    assert study.jobs() == jobs


def test_results_copied_into_a_fresh_clone_are_taken_as_they_are(finished, tmp_path):
    clone = make_project(tmp_path / "clone")
    for name in ("results", "figures"):
        shutil.copytree(finished.folder / name, clone.folder / name, copy_function=shutil.copyfile)
    # The worst that a plain copy can do: what was made first has the latest time.
    for age, name in enumerate(("results/prompts", "results/runs", "results/tables", "figures")):
        for path in (clone.folder / name).rglob("*.*"):
            os.utime(path, (1e9 - age, 1e9 - age))
    assert clone.jobs() == {}


def test_a_run_holds_one_line_for_each_generation(finished):
    runs = finished.folder / "results/runs/micro/code"
    lines = (runs / "T0_K2_eager.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["K"] for record in records] == [0, 2] * 4
    assert all(record["generated_ids"] and record["prompt_id"] for record in records)
    assert {record["prompt_source"] for record in records} == {"prompts.jsonl"}
    assert sorted(path.name for path in runs.iterdir()) == [
        f"T0_K{k}_eager.jsonl" for k in (0, 1, 2)
    ]


def test_make_study_says_a_line_for_each_job_and_nothing_else(finished):
    (finished.folder / "figures/latency_cdf.png").unlink()
    run = finished.script("run_study.py", "--configfile", "study.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines() == [
        "[1/1] plot_latency_cdf · " + run.stdout.split(" · ")[1].strip()
    ]
    assert (finished.folder / "figures/latency_cdf.png").exists()
    assert "rule plot_latency_cdf" in (finished.folder / "results/logs/study.log").read_text()
    again = finished.script("run_study.py", "--configfile", "study.yaml")
    assert again.stdout == "Nothing to be done: every result is there, and up to date\n"
    assert finished.jobs() == {}


def test_the_results_can_be_shown(finished):
    shown = finished.script("show_results.py")
    assert shown.returncode == 0, shown.stderr
    assert "figures/speedup_heatmap.png" in shown.stdout
    assert len([line for line in shown.stdout.splitlines() if line.startswith("micro")]) == 2


def test_the_report_holds_every_figure_and_needs_no_network(finished):
    report = finished.folder / "report.html"
    finished.environment |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    code, output = finished.run("--report", str(report), "all")
    assert code == 0, output
    text = report.read_text()
    assert all(rule.removeprefix("plot_") in text for rule in DRAWN)
