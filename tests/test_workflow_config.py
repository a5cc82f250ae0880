"""A study's configuration: what may be said, and what a slip in it leads to."""

from __future__ import annotations

import re

import pytest
import yaml

from specdec.utils.paths import PROJECT_ROOT
from tests.study import OVERLAY, Study, make_project, write_study

SIDES = ("draft", "target")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Study:
    return make_project(tmp_path_factory.mktemp("config") / "project")


@pytest.fixture
def study(project, tmp_path) -> Study:
    """A folder of its own for each test, with the project elsewhere."""
    write_study(tmp_path)
    return Study(tmp_path, project.project)


SLIPS = [
    ("draft_token: [4]", "study.yaml: draft_token: unknown key; did you mean 'draft_tokens'?"),
    ("pairs: [mikro]", "config/pairs.yaml: there is no pair 'mikro'; did you mean 'micro'?"),
    ("domains: [..]", "domains[0]: '..' is not a name: letters, digits and . _ -, beginning with"),
    ("sources: {code: {path: gone.jsonl}}", "study.yaml: sources.code.path: there is no file gone"),
]


@pytest.mark.parametrize(("slip", "message"), SLIPS, ids=[slip for slip, _ in SLIPS])
def test_a_slip_is_one_line_before_any_job_starts(study, slip, message):
    """One of each kind; the others: test_study_configuration.py."""
    content = yaml.safe_load(OVERLAY)
    changes = yaml.safe_load(slip)
    # Mappings merge where overlays meet: a source's keys must not be mixed with another's here.
    content |= changes
    (study.folder / "study.yaml").write_text(yaml.safe_dump(content))
    code, output = study.run("all")
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert code != 0 and len(errors) == 1, output
    assert message in errors[0]
    assert "Traceback" not in output and not (study.folder / "results").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 010\n", "study.yaml, line 9: 010 is 8 in YAML 1.1 and 10 in YAML 1.2"),
        ("temperatures: [1e300]\n", "study.yaml, line 9: 1e300 .* write a number as 1.0e.300"),
        ("engine: auto\n", "study.yaml, line 9: 'engine' is there already, in line 7"),
    ],
    ids=["octal", "no point", "twice"],
)
def test_what_can_be_read_in_two_ways_is_refused_with_its_line(study, text, message):
    with (study.folder / "study.yaml").open("a") as file:
        file.write(f"\n{text}")
    code, output = study.run("-n", "all")
    assert code != 0 and re.search(f"^error: {message}", output, re.MULTILINE), output
    assert "Traceback" not in output


def test_prompts_that_are_no_text_are_refused_by_a_dry_run(study):
    (study.folder / "prompts.jsonl").write_text('{"question": {"text": "\\udcff"}}\n' * 4)
    code, output = study.run("-n", "all")
    assert code != 0 and "Traceback" not in output
    assert "error: study.yaml: prompts.jsonl, line 1: \\udcff alone is half a char" in output


def test_results_that_cannot_be_written_are_refused_by_a_dry_run(study):
    (study.folder / "results").write_text("a file where the folder should be")
    code, output = study.run("-n", "all")
    assert code != 0 and "Traceback" not in output
    assert "error: results: nothing can be written there (it is no folder)" in output


def test_a_missing_model_folder_is_named_before_any_job_starts(study):
    (study.folder / "own.yaml").write_text(
        "gone: {draft: {model: ./none, dtype: float32}, target: {model: ./none, dtype: float32}}"
    )
    code, output = study.run("all", "--config", "registry=own.yaml", "pairs=['gone']")
    assert code != 0
    assert "error: own.yaml: gone: ./none: there is no such folder" in output


def test_a_value_of_the_command_line_is_called_so(study):
    code, output = study.run("all", "--config", "seed=-1")
    assert code != 0
    assert "error: --config: seed: -1 is less than the minimum of 0" in output


def count_decode_jobs(config: dict) -> int:
    pairs = [{"name": pair} if isinstance(pair, str) else pair for pair in config["pairs"]]
    merged = [config | pair for pair in pairs]
    cells = [len(one["domains"]) * (1 + len(one["draft_tokens"])) for one in merged]
    assert not any(isinstance(one["engine"], list) for one in merged)
    return sum(cells) * len(config["temperatures"])


@pytest.mark.parametrize("name", ["config", "gpu", "smoke"])
def test_each_shipped_study_can_be_planned(project, name):
    base, own = (
        yaml.safe_load((PROJECT_ROOT / f"config/{name}.yaml").read_text())
        for name in ("config", name)
    )
    own.pop("device", None)  # a study for a GPU is refused where there is none, also in a dry run
    (project.folder / "study.yaml").write_text(yaml.safe_dump(own))
    jobs = project.jobs()
    assert jobs["decode"] == count_decode_jobs(base | own)
    assert sum(jobs.values()) == jobs["decode"] + jobs["build_prompts"] + 6


def test_a_pair_may_have_its_own_domains_and_draft_tokens(study):
    content = yaml.safe_load(OVERLAY)
    content["domains"] = ["code", "conversation"]
    content["pairs"] = [{"name": "micro", "domains": ["code"], "draft_tokens": [2, 4, 8]}]
    (study.folder / "study.yaml").write_text(yaml.safe_dump(content))
    assert study.jobs()["decode"] == 4


def test_engines_run_side_by_side_each_with_its_baseline(study):
    content = yaml.safe_load(OVERLAY) | {"engine": ["eager", "compiled"]}
    other = {"name": "micro_other", "draft_tokens": [2], "engine": "compiled"}
    (study.folder / "study.yaml").write_text(yaml.safe_dump(content | {"pairs": ["micro", other]}))
    code, output = study.run("-n", "all")
    assert code == 0, output
    runs = set(re.findall(r"results/runs/(\S+)\.jsonl", output))
    assert runs == {f"micro/code/T0_K{k}_{e}" for k in (0, 1, 2) for e in content["engine"]} | {
        f"micro_other/code/T0_K{k}_compiled" for k in (0, 2)
    }


def test_random_weights_need_synthetic_acceptance_and_say_so_before_any_job_starts(study):
    side = {"model": "resources/micro/target", "dtype": "float32", "weights": "random"}
    (study.folder / "own.yaml").write_text(yaml.safe_dump({"shape": dict.fromkeys(SIDES, side)}))
    own = ("--config", "registry=own.yaml")
    code, output = study.run("-n", "all", *own, "pairs=['shape']")
    assert code != 0 and not (study.folder / "results").exists()
    assert "error: --config: pairs: 'shape' has random weights" in output
    forced = ("pairs=['shape']", "synthetic_acceptance=0.8")
    code, output = study.run("-n", "all", *own, *forced)
    assert code == 0, output


def test_the_folders_own_config_lies_between_the_projects_and_the_overlay(study):
    (study.folder / "config").mkdir()
    (study.folder / "config/config.yaml").write_text("{temperatures: [0, 0.8], draft_tokens: [8]}")
    code, output = study.run("-n", "all")
    assert code == 0, output
    # temperatures from the folder, draft tokens from the overlay, the rest from the project
    assert "T0.8_K2_eager.jsonl" in output and "_K8_" not in output


def test_a_timed_job_takes_the_whole_machine_whatever_the_command_line_says(study):
    code, output = study.run("-n", "all", "--cores", "4", "--workflow-profile", "none")
    assert code == 0, output
    decode = [part for part in output.split("rule ") if part.startswith("decode:")]
    assert decode and all("threads: 4" in part for part in decode)
