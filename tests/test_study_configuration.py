"""A study's configuration, checked in one process: what may be said, and what a slip leads to."""

from __future__ import annotations

import json

import pytest
import yaml

from specdec.study import configuration
from specdec.study.configuration import StudyError, study_pairs
from specdec.utils import machine
from specdec.utils.errors import SpecdecError
from specdec.utils.paths import PROJECT_ROOT
from tests.study import OVERLAY, write_study

SLIPS = [
    ("draft_tokens: [0]", "draft_tokens[0]: 0 is less than the minimum of 1"),
    ("draft_token: [4]", "draft_token: unknown key; did you mean 'draft_tokens'?"),
    ("draft_tokens: 4", "draft_tokens: 4 is not of type 'array'"),
    ("draft_tokens: [2.5]", "draft_tokens[0]: 2.5 is not of type 'integer'"),
    ("draft_tokens: [2, 2]", "draft_tokens: [2, 2] has non-unique elements"),
    ("temperatures: [-1]", "temperatures[0]: -1 is less than the minimum of 0"),
    ("temperatures: [hot]", "temperatures[0]: 'hot' is not of type 'number'"),
    ("threads: 0", "threads: 0 is less than the minimum of 1"),
    ("engine: fast", "engine: 'fast' is not one of ['eager', 'compiled', 'auto']"),
    ("engine: [eager, auto]", "engine[1]: 'auto' is not one of ['eager', 'compiled']"),
    ("pairs: [{name: micro, engine: fast}]", "pairs[0].engine: 'fast' is not one of"),
    ("synthetic_acceptance: 8", "synthetic_acceptance: 8 is greater than the maximum of 1"),
    (
        "{synthetic_acceptance: 0.8, temperatures: [0, 0.8]}",
        "temperatures: 'micro' has synthetic_acceptance, which is for temperature 0 only",
    ),
    ("paired: perhaps", "paired: 'perhaps' is not of type 'boolean'"),
    ("device: gpu", "device: 'gpu' is not one of auto, cpu, cuda, cuda:0"),
    ("device: cuda", "device: device 'cuda' was asked for, but torch"),
    ("threads: 4096", "threads: 4096 is above the "),
    ("max_new_tokens: 1", "max_new_tokens: 1 is less than the minimum of 2"),
    ("temperatures: [.nan]", "temperatures[0]: nan is not a finite number"),
    ("temperatures: [.inf]", "temperatures[0]: inf is not a finite number"),
    ("domains: [a/b]", "domains[0]: 'a/b' is not a name: letters, digits and . _ -"),
    ("domains: [..]", "domains[0]: '..' is not a name: letters, digits and . _ -, beginning with"),
    ("pairs: [../micro]", "pairs[0]: '../micro' is not a name: letters, digits"),
    ("prompts_per_domain: 9", "9 are asked for, and prompts.jsonl has 8 different ones for code"),
    ("{sources: {code: builtin}, prompts_per_domain: 51}", "the built-in source has 50 different"),
    ("pairs: []", "pairs: [] should be non-empty"),
    ("pairs: [{name: micro, k: [1]}]", "pairs[0].k: unknown key; known: name"),
    ("pairs: [micro, micro]", "pairs: 'micro' is there twice"),
    ("pairs: [mikro]", "config/pairs.yaml: there is no pair 'mikro'; did you mean 'micro'?"),
    ("domains: [law]", "domains: 'law' has no entry in sources"),
    ("{domains: [law], sources: {law: builtin}}", "sources.law: built-in prompts"),
    ("sources: {code: {path: gone.jsonl}}", "sources.code.path: there is no file gone"),
    ("sources: {code: {paht: gone.jsonl}}", "sources.code: "),
    ("registry: gone.yaml", "gone.yaml: cannot read the registry"),
]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The embedded study under the overlay of the tests, in a folder of its own."""
    write_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "available_cores", lambda: 2)
    shipped = yaml.safe_load((PROJECT_ROOT / "config/config.yaml").read_text())
    return shipped | yaml.safe_load(OVERLAY)


@pytest.mark.parametrize(("slip", "message"), SLIPS, ids=[slip for slip, _ in SLIPS])
def test_a_slip_is_one_line_with_its_place(config, slip, message):
    with pytest.raises(SpecdecError) as caught:
        study_pairs(config | yaml.safe_load(slip))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_mistake_names_the_key_whose_value_must_change(config):
    for slip, key in {
        "threads: 3": "threads",
        "prompts_per_domain: 9": "prompts_per_domain",
    }.items():
        with pytest.raises(StudyError) as caught:
            study_pairs(config | yaml.safe_load(slip))
        assert caught.value.key == key


def test_the_study_of_the_tests_is_read(config):
    (pair,) = study_pairs(config).values()
    assert (pair.domains, pair.draft_tokens, pair.engines) == (["code"], [1, 2], ["eager"])


def test_what_a_pair_says_itself_goes_before_what_the_study_says(config):
    own = {"name": "micro_other", "draft_tokens": [8], "engine": ["eager", "compiled"]}
    pairs = study_pairs(config | {"pairs": ["micro", own]})
    assert pairs["micro"].draft_tokens == [1, 2]
    assert (pairs["micro_other"].draft_tokens, pairs["micro_other"].engines) == (
        [8],
        ["eager", "compiled"],
    )


def test_jobs_that_run_elsewhere_may_ask_for_what_this_machine_lacks(config):
    assert study_pairs(config | {"threads": 64, "device": "cuda:1"}, jobs_run_here=False)


def test_equal_prompts_of_a_file_are_one(config, tmp_path):
    lines = [json.dumps({"question": {"text": text}}) for text in ["a", "a", "b", " ", "c"]]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    with pytest.raises(StudyError, match="4 are asked for, and prompts.jsonl has 3 different ones"):
        study_pairs(config)


def test_the_registry_of_the_project_serves_a_folder_without_one(config):
    assert configuration.registry_path(config) == str(PROJECT_ROOT / "config/pairs.yaml")
    assert configuration.registry_path(config | {"registry": "own.yaml"}) == "own.yaml"
