"""One decode job: pairs of generations, resumed where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from specdec.data.dataset import Prompt
from specdec.decoding import loaded_pair
from specdec.models.registry import ModelPair, ModelSide
from specdec.profiling.metrics import BenchmarkConfig
from specdec.profiling.records import RECORD_NAMES
from specdec.study import job as jobs
from specdec.study.job import Job, run_job
from specdec.utils.errors import SpecdecError
from tests.checks import needs_compiler
from tests.tiny import make_model, make_tokenizer, perturbed
from tests.toy_tokenizers import byte_level

TEXTS = ["The quick brown fox", "def add(a, b):", "for i in range(10):", "The lazy dog"]
PROMPTS = [Prompt(f"code_{i:03d}", "code", text, 4) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tokenizer = make_tokenizer()
    target = make_model(vocab_size=len(tokenizer))
    for name, model in [("target", target), ("draft", perturbed(target))]:
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    draft, target = (ModelSide(str(folder / name), "float32") for name in ("draft", "target"))
    return Job(
        pair=ModelPair("tiny", draft, target),
        domain="code",
        K=3,
        temperature=0.0,
        max_new_tokens=9,
        seed=1,
        paired=True,
        device="cpu",
        prompt_source="test",
        engine="eager",
    )


@pytest.fixture
def run(tmp_path):
    """Runs a job in a folder of its own and returns its records."""

    def run_here(job, prompts=PROMPTS, check_wanted=lambda: None):
        out = tmp_path / f"K{job.K}.jsonl"
        run_job(job, prompts, tmp_path / "progress.jsonl", out, check_wanted)
        return [json.loads(line) for line in out.read_text().splitlines()]

    return run_here


def test_a_paired_job_decodes_each_prompt_twice_in_alternating_order(job, run):
    records = run(job)
    assert [(r["prompt_id"], r["K"]) for r in records] == [
        (prompt.prompt_id, k) for prompt in PROMPTS for k in (0, 3)
    ]
    assert [r["order_index"] for r in records] == [0, 1, 1, 0, 0, 1, 1, 0]
    assert all(r["paired"] and r["job_K"] == 3 for r in records)


def test_an_unpaired_job_and_the_baseline_decode_each_prompt_once(job, run):
    assert [r["K"] for r in run(replace(job, paired=False))] == [3] * 4
    baseline = run(replace(job, K=0))
    assert [r["K"] for r in baseline] == [0] * 4 and not baseline[0]["paired"]


def test_greedy_pairs_of_a_job_agree_token_for_token(job, run):
    records = run(job)
    for baseline, speculative in zip(records[::2], records[1::2], strict=True):
        assert baseline["generated_ids"] == speculative["generated_ids"]


@pytest.mark.parametrize(
    ("temperature", "vocabulary", "rule", "notes"),
    [(0.0, "auto", "greedy", True), (0.8, "exact_match", "matching", True)]
    + [(0.8, "intersection", "rejection", False)],
)
def test_near_ties_are_noted_wherever_the_rule_promises_the_baselines_tokens(
    job, run, monkeypatch, tmp_path, temperature, vocabulary, rule, notes
):
    """Paired, where the outputs differ; unpaired always, for its baseline is decoded elsewhere."""
    tokenizer = byte_level()  # another than the target's
    make_model(vocab_size=len(tokenizer), seed=3).save_pretrained(tmp_path / "draft")
    tokenizer.save_pretrained(tmp_path / "draft")
    draft = ModelSide(str(tmp_path / "draft"), "float32")
    pair = replace(job.pair, draft=draft, vocabulary=vocabulary)
    job = replace(job, pair=pair, temperature=temperature)
    assert all(record.get("near_ties") is None for record in run(job))  # they agree
    monkeypatch.setattr(jobs, "ties_of_one", lambda *_: [4])
    for record in run(replace(job, paired=False, seed=2)):
        assert record["verified_by"] == rule
        assert record.get("near_ties") == ([4] if notes else None)


def test_a_record_carries_the_hash_of_its_request_and_where_it_ran(job, run):
    for record in run(job):
        names = {RECORD_NAMES.get(name, name): name for name in BenchmarkConfig.__annotations__}
        asked = {name: record[column] for column, name in names.items()}
        assert BenchmarkConfig(**asked).config_hash() == record["config_hash"]
        assert record["environment"]["torch"] and record["environment"]["threads"] >= 1
        assert record["environment"]["instruction_set"]
        assert record["draft_weights"] is record["target_weights"] is None  # of no GGUF file
        assert record["prompt_tokens"] > 0 and record["code_digest"] and record["engine"]


def test_a_record_says_what_engine_was_asked_for_and_which_was_taken(job, run):
    for record in run(job):
        assert record["engine_requested"] == record["engine"] == "eager"
        assert record["engine_reason"] is None


def test_forced_acceptance_stands_in_the_speculative_records_alone(job, run):
    records = run(replace(job, synthetic_acceptance=1.0))
    assert [r["synthetic_acceptance"] for r in records] == [None, 1.0] * 4
    assert all(r["acceptance_rate"] == 1 for r in records if r["K"])
    measured = run(job)
    assert any(r["acceptance_rate"] < 1 for r in measured if r["K"])


def test_random_weights_read_a_text_as_bytes_and_write_none(job, run):
    sizes = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    side = ModelSide("shape", "float32", weights="random", shape={"model_type": "llama", **sizes})
    records = run(replace(job, pair=ModelPair("shape", side, side), synthetic_acceptance=0.8))
    assert [r["prompt_tokens"] for r in records[::2]] == [len(text) for text in TEXTS]
    assert {r["text"] for r in records} == {""} and len(records) == 8
    assert "random weights" in records[0]["target_model"]


def test_the_log_says_how_long_preparation_took(job, run, caplog):
    caplog.set_level("INFO")
    run(job)
    for k in (0, 3):
        assert f"K = {k}: engine eager, prepared in 0.0 s" in caplog.text


class Killed(BaseException):
    pass


def kill_after(calls):
    def check_wanted():
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise Killed

    return check_wanted


def test_a_job_that_was_killed_decodes_only_what_is_missing(job, run, tmp_path):
    with pytest.raises(Killed):
        run(job, check_wanted=kill_after(2))
    assert not (tmp_path / "K3.jsonl").exists()
    done = (tmp_path / "progress.jsonl").read_text().splitlines()
    assert len(done) == 4  # two prompts, each with its baseline
    with (tmp_path / "progress.jsonl").open("a") as file:
        file.write('{"torn')
    records = run(job)
    kept = [json.loads(line) | {"job_prompts": len(PROMPTS)} for line in done]
    assert sorted(map(json.dumps, records[:4])) == sorted(map(json.dumps, kept))
    assert [r["order_index"] for r in records] == [0, 1, 1, 0, 0, 1, 1, 0]


def test_a_finished_job_that_is_asked_for_again_loads_no_draft(job, run, monkeypatch):
    first = run(job)
    monkeypatch.setattr(jobs, "_decoder", None)
    assert run(job) == first


CHANGES = [dict(max_new_tokens=8), dict(seed=2), dict(temperature=0.5)]


@pytest.mark.parametrize("change", CHANGES)
def test_another_request_is_not_answered_by_old_records(job, run, change):
    before = {r["config_hash"] for r in run(job)}
    assert before.isdisjoint(r["config_hash"] for r in run(replace(job, **change)))


@pytest.mark.parametrize("change", [dict(engine="auto"), dict(synthetic_acceptance=0.8)])
def test_another_engine_or_acceptance_is_another_request(job, change):
    one, other = (x.request(PROMPTS[0], 3, "cpu") for x in (job, replace(job, **change)))
    assert one.config_hash() != other.config_hash()


@needs_compiler
@pytest.mark.slow
def test_a_compiled_job_compiles_before_it_times_and_emits_the_same(job, run, caplog):
    caplog.set_level("INFO")
    eager, compiled = (run(replace(job, engine=engine)) for engine in ("eager", "compiled"))
    assert all(record["engine"] == "compiled" for record in compiled)
    assert [r["generated_ids"] for r in compiled] == [r["generated_ids"] for r in eager]
    assert "K = 3: engine compiled, prepared in" in caplog.text
    assert max(record["total_time"] for record in compiled) < 1


def test_records_of_other_code_are_not_taken(job, run, monkeypatch):
    run(job)
    monkeypatch.setattr(jobs, "code_digest", lambda name: "another")
    assert {r["code_digest"] for r in run(job)} == {"another"}


def test_a_job_that_nobody_waits_for_stops_at_the_next_prompt(job, run):
    def gone():
        raise SpecdecError("the workflow is gone")

    with pytest.raises(SpecdecError, match="gone"):
        run(job, check_wanted=gone)


def test_a_missing_draft_is_noticed_before_anything_is_loaded(job, run, monkeypatch):
    missing = replace(job.pair, draft=ModelSide("no/such/folder/here", "float32"))
    monkeypatch.setattr(loaded_pair, "load_side", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(SpecdecError, match="no/such/folder/here"):
        run(replace(job, pair=missing))
