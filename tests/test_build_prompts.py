"""scripts/build_prompts.py: prompts for pairs, from tokenizers and configurations alone."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import yaml
from transformers import GPT2Config

from specdec.data.prompts import PromptDataset
from specdec.utils.errors import SpecdecError
from specdec.utils.paths import PROJECT_ROOT

SCRIPT = PROJECT_ROOT / "scripts" / "build_prompts.py"
SETTINGS = {
    "sources": {"code": "builtin", "conversation": "builtin"},
    "prompts_per_domain": 4,
    "max_new_tokens": 40,
    "room_for_drafts": 8,
    "seed": 1,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_tokenizer):
    """A folder with models that have no weights, and a registry of pairs of them."""
    folder = tmp_path_factory.mktemp("study")
    for name, context in {"wide": 1024, "narrow": 256, "tight": 48}.items():
        GPT2Config(n_positions=context).save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
    pairs = {
        f"wide_{draft}": {
            "draft": {"model": draft, "dtype": "float32"},
            "target": {"model": "wide", "dtype": "float32"},
        }
        for draft in ("wide", "narrow", "tight")
    }
    (folder / "pairs.yaml").write_text(yaml.safe_dump(pairs))
    return folder


def arguments(pairs, out, changes):
    settings = json.dumps(SETTINGS | changes)
    return ["--registry", "pairs.yaml", "--pairs", *pairs, "--settings", settings, "--out", out]


@pytest.fixture
def build(study, monkeypatch):
    """Runs the script's main function in the study's folder; the path of what it wrote."""
    spec = importlib.util.spec_from_file_location("build_prompts", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.chdir(study)

    def run(*pairs, out="prompts.json", **changes):
        script.main(arguments(pairs, out, changes))
        return study / out

    return run


def test_prompts_fit_the_target_and_the_draft_of_every_pair(build, capsys):
    dataset = PromptDataset.load(build("wide_wide", "wide_narrow"))
    assert len(dataset) == 8
    assert [(limit["model"], limit["max_prompt_tokens"]) for limit in dataset.card["limits"]] == [
        ("wide", 1024 - 48),
        ("narrow", 256 - 48),
    ]
    assert dataset.card["tokenizer"] == "wide"
    assert dataset.card["domains"]["code"]["too_long"] > 0
    assert max(prompt.token_count for prompt in dataset.get_all()) <= 208
    assert "[prompts] saved   8 prompts → prompts.json" in capsys.readouterr().out


def test_built_again_the_file_has_the_same_bytes(build):
    first, second = (build("wide_wide", out=name) for name in ("a.json", "b.json"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("pair", "changes", "message"),
    [
        ("wide_tight", {}, "pair wide_tight: the context of tight is 48 tokens, and 48 new"),
        ("no_such", {}, "pairs.yaml: there is no pair 'no_such'"),
        ("wide_wide", {"prompts_per_domain": 51}, "code: 51 prompts wanted, 50 of 50 from"),
        ("wide_wide", {"sources": {"code": {"path": "a.jsonl"}}}, "sources.code: a.jsonl c"),
        ("wide_wide", {"topic": "x"}, "--settings: needs exactly the keys sources, prompts"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(study, build, pair, changes, message):
    with pytest.raises(SpecdecError) as caught:
        build(pair, out="never.json", **changes)
    assert str(caught.value).startswith(message)
    assert not (study / "never.json").exists()


def test_as_a_command_it_ends_in_one_line_and_exit_code_2(study):
    command = [sys.executable, SCRIPT, *arguments(["no_such"], "never.json", {})]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    run = subprocess.run(command, cwd=study, env=environment, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: pairs.yaml: there is no pair 'no_such'")
    assert run.stderr.count("\n") == 1
