"""The benchmark: arithmetic of its card, its turns, its ratios the right way round, and its rival.

Where times matter they are made up; where they are measured nothing is asserted of them.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter

import pytest
import torch
from transformers import GenerationConfig
from transformers.pytorch_utils import Conv1D

from specdec import __main__ as command
from specdec.benchmark import card, run, table
from specdec.benchmark.arms import (
    AMOUNTS,
    Arm,
    BenchPrompt,
    Request,
    Run,
    decoder_arm,
    measure,
    turns,
)
from specdec.benchmark.page import format_findings, format_json, format_table
from specdec.benchmark.prompts import random_prompts
from specdec.benchmark.rows import instrumentation, make_rows
from specdec.benchmark.run import benchmark, compare
from specdec.benchmark.settings import Settings
from specdec.benchmark.transformers_arm import assisted_arm, generate_arm
from specdec.decoding import loaded_pair
from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.loaded_pair import Encoded, LoadedPair
from specdec.kernels.formats import lay_out_weights
from specdec.models.registry import ModelPair, ModelSide
from specdec.utils.errors import SpecdecError
from tests.tiny import make_model, make_tokenizer, perturbed, wrap

GREEDY = Request(max_new_tokens=20, temperature=0.0, top_k=0, top_p=1.0, seed=1)
PROMPT = BenchPrompt("one", Encoded([5, 9, 11, 200, 3]))
PAIR = ModelPair("tiny", ModelSide("small", "float32"), ModelSide("large", "float32"))
SMALL = Settings("tiny", k=(2, 3), prompts=2, max_new_tokens=12, repeats=1, engine="eager")


@pytest.fixture(autouse=True)
def small_copies(monkeypatch):
    """The copy of a few MiB: nothing is asserted of its speed."""
    monkeypatch.setattr(card, "LARGEST_BUFFER", 2**20)


def a_run(ids=(1, 2, 3), **given) -> Run:
    """A run of made-up amounts: 10 tokens a second in rounds of two, unless told otherwise."""
    plain = dict.fromkeys(AMOUNTS, 0.0) | {"tokens": 21, "total_s": 2.5, "steps": 20, "rounds": 10}
    plain |= {"decode_s": 2.0, "full_rounds": 10, "full_rounds_s": 2.0, "proposed": 20}
    plain |= {"accepted": 10, "draft_ms": 500.0, "verify_ms": 1000.0}
    return Run(list(ids), plain | given, peak_memory_mb=1.0, engine="eager")


def an_arm(name: str, K: int = 0) -> Arm:
    return Arm(name, K, lambda prompt: a_run())


def settled(tiny_pair, settings: Settings):
    """`compare` on the tiny pair: the document and what was shown."""
    shown: list[str] = []
    return compare(LoadedPair(PAIR, "cpu", *tiny_pair), settings, shown.append), "\n".join(shown)


# The card


def test_a_tied_embedding_is_read_whole_and_the_positions_are_not():
    wrapper = wrap(make_model("gpt2", vocab_size=64))
    positions = 512 * 32
    assert card.weight_bytes(wrapper) == 4 * (wrapper.param_count - positions)


def test_weights_that_are_read_in_bfloat16_count_so():
    wrapper = wrap(make_model("gpt2", vocab_size=64, dtype=torch.bfloat16).float())
    layers = sum(
        part.weight.numel()
        for part in wrapper.model.modules()
        if isinstance(part, (Conv1D, torch.nn.Linear))
    )
    others = sum(weight.numel() for weight in wrapper.model.parameters() if weight.dim() == 1)
    lay_out_weights(wrapper.model, free_bytes=2**40)
    assert card.weight_bytes(wrapper) == 2 * layers + 4 * others


def test_an_untied_input_embedding_is_only_looked_up():
    wrapper = wrap(make_model("llama", vocab_size=64, tie_word_embeddings=False))
    inv_freq = 4 * 4 * 2  # two buffers of head_dim / 2 float32 numbers
    assert card.weight_bytes(wrapper) == 4 * (wrapper.param_count - 64 * 32) + inv_freq


def test_cache_bytes_are_those_of_keys_and_values_of_every_layer():
    wrapper = wrap(make_model("llama", layers=3))  # 2 key-value heads of 8 numbers
    assert card.cache_bytes_per_token(wrapper) == 3 * 2 * (2 * 8) * 4


def test_what_the_bandwidth_allows_is_bytes_divided_by_it():
    wrapper = wrap(make_model("llama"))
    model = card.model_card(wrapper, context=100, bandwidth=1e6)
    bytes_a_step = card.weight_bytes(wrapper) + 100 * card.cache_bytes_per_token(wrapper)
    assert model["tokens_per_s"] == pytest.approx(1e6 / bytes_a_step)
    small, large = {"step_bytes": 100.0}, {"step_bytes": 600.0}
    allowed = card.round_card(small, large, 4, bandwidth=1e6)
    assert allowed["ms"] == pytest.approx(1.0)
    assert allowed["most_tokens_per_s"] == pytest.approx(5000)


def test_a_copy_counts_what_is_read_and_what_is_written_and_a_read_what_is_read(monkeypatch):
    class Second:
        elapsed_ms = 1000.0

        def __init__(self, device):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(card, "CUDATimer", Second)
    monkeypatch.setattr(card, "SMALLEST_BUFFER", 4096)
    monkeypatch.setattr(card, "LARGEST_BUFFER", 16384)
    monkeypatch.setattr(card, "last_level_cache", lambda: 8192)
    copied = card.copy_bandwidth(torch.device("cpu"))
    assert copied == {"bytes_per_s": 2 * 8192, "buffer_bytes": 8192}
    read = card.read_bandwidth(torch.device("cpu"))
    assert read == {"bytes_per_s": 8192, "buffer_bytes": 8192}


def test_a_share_of_the_reading_speed_counts_less_where_reading_is_faster():
    shares = table.speeds([a_run()], [a_run()], allowed_ms=100.0, read_to_copy=2.0)
    assert shares["share_of_bandwidth"]["value"] == pytest.approx(100 / 200)
    assert shares["share_of_read"]["value"] == pytest.approx(50 / 200)


# Turns and runs


def test_arms_take_turns_and_each_begins_as_often():
    arms = [an_arm(name) for name in "abc"]
    order = [(place, arm.name) for place, arm in turns(arms, prompts=3, repeats=2)]
    assert Counter(order) == {(place, name): 2 for place in range(3) for name in "abc"}
    firsts = [name for _, name in order[::3]]
    assert firsts == ["a", "b", "c", "b", "c", "a"]
    assert [name for _, name in order[3:6]] == ["b", "c", "a"]


def test_of_the_repeats_the_run_of_the_median_time_is_kept_whole():
    times = iter([3.0, 1.0, 2.0])
    runs = [a_run(decode_s=time, draft_ms=100 * time) for time in (1.0, 2.0, 3.0)]
    arm = Arm("a", 0, lambda prompt: runs[int(next(times)) - 1])
    (kept,) = measure([arm], [PROMPT], repeats=3)["a"]
    assert (kept.amounts["decode_s"], kept.amounts["draft_ms"]) == (2.0, 200.0)


def test_random_prompts_are_seeded_and_have_the_asked_length():
    wrapper = wrap(make_model())
    first, second = (random_prompts(wrapper, wrapper, 7, 3, 10, seed) for seed in (1, 2))
    assert first == random_prompts(wrapper, wrapper, 7, 3, 10, 1) != second
    assert [len(prompt.ids) for prompt in first] == [7, 7, 7]
    with pytest.raises(SpecdecError, match="--prompt-tokens 600"):
        random_prompts(wrapper, wrapper, 600, 1, 10, 1)


def test_our_arms_stop_at_no_end_token(tiny_pair, monkeypatch):
    _, target = tiny_pair
    arm = decoder_arm(0, AutoregressiveDecoder(target, engine="eager"), GREEDY)
    end = GenerationConfig(eos_token_id=arm.generate(PROMPT).ids[8])
    monkeypatch.setattr(target.model, "generation_config", end)
    assert len(arm.generate(PROMPT).ids) == 20


# transformers' arms


def drafted_per_round(draft, target, arm) -> tuple[list[int], Run]:
    """How many passes the draft made before each of the target's."""
    counts, drafts = [], [0]

    def count_draft(*_):
        drafts[0] += 1

    def close_round(*_):
        counts.append(drafts[0])
        drafts[0] = 0

    hooks = [draft.model.register_forward_pre_hook(count_draft)]
    hooks.append(target.model.register_forward_pre_hook(close_round))
    result = arm.generate(PROMPT)
    for hook in hooks:
        hook.remove()
    return counts, result


def test_transformers_emits_our_baselines_greedy_tokens(tiny_pair):
    draft, target = tiny_pair
    ours = decoder_arm(0, AutoregressiveDecoder(target, engine="eager"), GREEDY).generate(PROMPT)
    assert len(ours.ids) == 20
    assert generate_arm(target, GREEDY).generate(PROMPT).ids == ours.ids
    assert assisted_arm(draft, target, 3, GREEDY, True).generate(PROMPT).ids == ours.ids


def test_transformers_drafts_K_tokens_in_every_round_and_stops_at_no_end_token(tiny_pair):
    draft, target = tiny_pair
    plain = generate_arm(target, GREEDY).generate(PROMPT)
    # The models' own configurations want other numbers, and an end token in the middle.
    own = GenerationConfig(
        eos_token_id=plain.ids[8], num_assistant_tokens=7, assistant_confidence_threshold=0.99
    )
    before = draft.model.generation_config, target.model.generation_config
    draft.model.generation_config = target.model.generation_config = own
    arm = assisted_arm(draft, target, 3, GREEDY, True)
    try:
        counts, result = drafted_per_round(draft, target, arm)
        assert draft.model.generation_config is own and target.model.generation_config is own
    finally:
        draft.model.generation_config, target.model.generation_config = before
    assert result.ids == plain.ids
    full = int(result.amounts["full_rounds"])
    assert full >= 3 and counts[: full + 1] == [3] * (full + 1)
    assert result.amounts["rounds"] == len(counts) - 1
    assert result.amounts["proposed"] == sum(counts[1:])
    assert result.amounts["steps"] == result.amounts["accepted"] + result.amounts["rounds"]


def test_where_draft_and_target_are_one_transformers_accepts_all(tiny_wrapper):
    result = assisted_arm(tiny_wrapper, tiny_wrapper, 3, GREEDY, True).generate(PROMPT)
    assert result.amounts["accepted"] == result.amounts["proposed"] > 0


def test_transformers_is_given_the_sampling_that_was_asked_for(tiny_pair):
    _, target = tiny_pair
    only_one = Request(12, temperature=1.5, top_k=1, top_p=1.0, seed=1)
    greedy = Request(12, 0.0, 0, 1.0, 1)
    free = Request(12, temperature=1.5, top_k=0, top_p=1.0, seed=1)
    ids = [generate_arm(target, r).generate(PROMPT).ids for r in (greedy, only_one, free)]
    assert ids[0] == ids[1] != ids[2]


def test_sampling_across_vocabularies_is_left_out_for_it_would_change_the_draft(tiny_pair):
    _, target = tiny_pair
    other = make_tokenizer(300)
    draft = wrap(make_model(vocab_size=len(other), seed=3), other)
    sampling = Request(8, temperature=1.0, top_k=0, top_p=1.0, seed=1)
    with pytest.raises(SpecdecError, match="in place"):
        assisted_arm(draft, target, 2, sampling, False)
    greedy = assisted_arm(draft, target, 2, GREEDY, False).generate(PROMPT)
    assert greedy.ids == generate_arm(target, GREEDY).generate(PROMPT).ids
    assert greedy.amounts["proposed"] == 0  # not known


# Figures


def rows_of(ours: dict, theirs: dict, settings: Settings = SMALL) -> dict[str, dict]:
    """Rows of a baseline and K = 2 of ours and transformers', by name; the dicts are amounts."""
    names = ["baseline", "K = 2", "transformers", "transformers, K = 2"]
    amounts = [{"rounds": 20, "full_rounds": 20}, ours, {}, theirs]
    runs = {name: [a_run(**given)] * 3 for name, given in zip(names, amounts, strict=True)}
    own, others = [an_arm(names[0]), an_arm(names[1], 2)], [an_arm(names[2]), an_arm(names[3], 2)]
    rows = make_rows(own, others, runs, {0: 10.0, 2: 20.0}, settings)
    return {row["arm"]: row for row in rows}


def test_a_faster_arm_of_ours_raises_S_and_the_ratio_to_theirs():
    rows = rows_of(ours={"decode_s": 1.0}, theirs={"decode_s": 4.0})
    assert rows["K = 2"]["S"] == {"value": 2.0, "low": 2.0, "high": 2.0}
    assert rows["transformers, K = 2"]["S"]["value"] == 0.5
    assert rows["transformers, K = 2"]["ours_to_theirs"]["value"] == 4.0
    assert rows["transformers"]["ours_to_theirs"]["value"] == 1.0


def test_the_first_token_comes_after_what_is_no_decoding():
    row = rows_of(ours={"total_s": 3.25}, theirs={})["K = 2"]
    assert row["first_token_ms"]["value"] == pytest.approx(1250)


def test_a_slow_arm_of_ours_lowers_the_numbers():
    rows = rows_of(ours={"decode_s": 8.0, "full_rounds_s": 8.0}, theirs={})
    assert rows["K = 2"]["S"]["value"] == 0.25
    assert rows["K = 2"]["tokens_per_s"]["value"] == 2.5
    assert rows["K = 2"]["ms_per_round"]["value"] == pytest.approx(800)
    assert rows["K = 2"]["share_of_bandwidth"]["value"] == pytest.approx(20 / 800)
    assert rows["transformers, K = 2"]["ours_to_theirs"]["value"] == 0.25
    assert rows["transformers, K = 2"]["ours_to_theirs_with_prefill"]["value"] == 1.0


def test_costs_are_in_steps_of_the_baseline_and_make_up_S():
    # Ours: 10 rounds in 2 s, 0.5 s of it drafts (2 a round), 1 s target. A step: 1 s / 20 = 50 ms.
    row = rows_of(ours={}, theirs={})["K = 2"]
    assert {name: row[name]["value"] for name in ("c", "v", "h", "h0")} == pytest.approx(
        {"c": 0.5, "v": 2.0, "h": 1.0, "h0": 1.0}
    )
    assert row["S_parts"] == pytest.approx(row["S"]["value"])
    assert (row["tau"]["value"], row["alpha"]["value"]) == (2.0, 0.5)


def test_intervals_hold_the_value_and_resample_prompts():
    fast, slow = a_run(decode_s=1.0), a_run(decode_s=3.0)
    estimate = table.estimate(table.tokens_per_s, table.amounts([fast, slow, fast, slow]))
    assert estimate["low"] < estimate["value"] == 10.0 < estimate["high"]
    # What was measured on one prompt stays together: here every ratio is 2, so is its interval.
    double = table.amounts([a_run(decode_s=2.0), a_run(decode_s=6.0)])
    ratio = table.estimate(table.speedup, table.amounts([fast, slow]), double)
    assert ratio == {"value": 2.0, "low": 2.0, "high": 2.0}


def test_the_geometric_mean_is_over_K():
    ours = [table.amounts([a_run(decode_s=1.0)] * 2)] * 2
    theirs = [table.amounts([a_run(decode_s=s)] * 2) for s in (1.0, 4.0)]
    mean = table.geometric_mean(table.speedup, ours, theirs)
    assert mean["value"] == pytest.approx(2.0)


def test_differences_name_the_first_differing_position():
    runs = {
        "baseline": [a_run([1, 2, 3]), a_run([1, 2, 3])],
        "K = 2": [a_run([1, 2, 3]), a_run([1, 9, 3])],
    }
    assert table.differences(runs, ["p", "q"]) == {"K = 2": {"q": 1}}


def test_timing_that_slows_ours_down_is_seen():
    names = ["baseline", "baseline, phases untimed", "K = 2", "K = 2, phases untimed"]
    runs = {name: [a_run()] * 2 for name in names}
    runs["K = 2"] = [a_run(decode_s=2.5)] * 2
    found = instrumentation(Settings("tiny", k=(2,)), runs)
    assert found["K = 2"]["value"] == pytest.approx(0.8)


# A whole benchmark


def test_a_benchmark_of_a_tiny_pair_says_everything(tiny_pair):
    settings = Settings(
        **vars(SMALL) | {"against": ("transformers",), "instrumentation": True, "prompts": 3}
    )
    document, shown = settled(tiny_pair, settings)
    arms = ["baseline", "K = 2", "K = 3", "transformers", "transformers, K = 2"]
    assert [row["arm"] for row in document["rows"]] == [*arms, "transformers, K = 3"]
    for row in document["rows"][1:3]:
        assert row["S_parts"] == pytest.approx(row["S"]["value"])
        assert row["S"]["low"] <= row["S"]["value"] <= row["S"]["high"]
    assert document["against_transformers"]["K"] == [2, 3]
    assert not any(document["differences"].values())
    assert set(document["instrumentation"]) == {"K = 2", "K = 3"}
    assert set(document["card"]["engine"]["got"]) == {"baseline", "K = 2", "K = 3"}
    assert document["card"]["instruction_set"] in ("avx512", "avx2", "neon", "generic")
    assert document["card"]["target"]["weights"] is None
    assert (
        "vectors     " in shown
        and "GB/s" in shown
        and "with the same draft, geometric mean over K = 2, 3: " in shown
    )
    assert shown.strip().splitlines()[-1].startswith("K = 3: S = τ(1 + h₀)/(K·c + v + h) = ")
    assert "synthetic" not in shown.lower()


def test_forced_acceptance_stands_on_the_face_of_everything(tiny_pair):
    settings = Settings(**vars(SMALL) | {"against": ("transformers",), "synthetic_acceptance": 0.8})
    document, shown = settled(tiny_pair, settings)
    assert "acceptance  synthetic 0.8" in shown
    assert "SYNTHETIC ACCEPTANCE 0.8" in shown and "S [synthetic 0.8]" in shown
    assert shown.strip().splitlines()[-1].endswith("[synthetic 0.8 acceptance]")
    rows = {row["arm"]: row for row in document["rows"]}
    assert rows["K = 2"]["acceptance"] == "synthetic 0.8"
    # Its own acceptance is no match for a forced one.
    theirs = rows["transformers, K = 2"]
    assert theirs["acceptance"] == "measured" and not {"S", "tokens_per_s", "tau"} & set(theirs)
    assert theirs["ours_to_theirs"]["value"] == pytest.approx(
        theirs["ms_per_round"]["value"] / rows["K = 2"]["ms_per_round"]["value"]
    )
    assert document["against_transformers"]["of"] == "rounds/s"
    assert document["differences"] is None


def test_an_arm_that_transformers_cannot_run_says_so_in_its_row(tiny_pair, tiny_tokenizer):
    draft, target = tiny_pair
    draft = wrap(perturbed(target.model), tiny_tokenizer)
    draft.model._is_stateful = True  # what transformers asks of the target
    target = wrap(perturbed(target.model, scale=0.0), tiny_tokenizer)
    target.model._is_stateful = True
    settings = Settings(**vars(SMALL) | {"against": ("transformers",), "k": (2,)})
    document, shown = settled((draft, target), settings)
    assert [row["arm"] for row in document["rows"]][:3] == ["baseline", "K = 2", "transformers"]
    assert "stateful" in document["rows"][3]["not_run"]
    assert "transformers, K = 2: not run: assisted generation is not supported" in shown
    assert document["against_transformers"]["geometric_mean"] is None
    json.loads(format_json(document))


def test_models_without_tokenizers_get_random_prompts(tiny_pair):
    pair = [wrap(wrapper.model) for wrapper in tiny_pair]
    document, _ = settled(pair, Settings(**vars(SMALL) | {"prompt_tokens": 9}))
    assert document["card"]["mean_prompt_tokens"] == 9


def test_json_holds_no_nan():
    line = format_json({"a": [math.nan, 1.0], "b": {2: math.inf}})
    assert json.loads(line) == {"a": [None, 1.0], "b": {"2": None}}


@pytest.mark.parametrize("named", [False, True], ids=["last line", "file"])
def test_the_command_gives_one_json_document(named, tmp_path, capsys, monkeypatch):
    out = tmp_path / "bench.json" if named else None
    words = "--pair micro --k 2 --prompts 2 --max-new-tokens 8 --repeats 1 --engine eager"
    monkeypatch.setattr(sys, "argv", ["specdec", "bench", *words.split()])
    if named:
        sys.argv += ["--out", str(out)]
    command.main()
    said = capsys.readouterr().out.splitlines()
    # Another test may have sent a logger's lines there.
    lines = [line for line in said if not line.startswith("[")]
    assert lines[0].startswith("pair        micro: resources/micro/draft")
    document = json.loads(lines[-1] if out is None else out.read_text())
    assert {"card", "rows", "settings", "versions"} <= set(document)
    assert document["settings"]["k"] == [2] and document["versions"]["torch"] == torch.__version__
    assert lines[-2].startswith("K = 2: S = ") and lines[-3].startswith("verdict: ")
    assert named == (lines[-1] == f"written: {out}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--k -1", "--k: -1 is below 1"),
        ("--temperature nan", "--temperature: nan is no number"),
        ("--synthetic-acceptance 2", "--synthetic-acceptance: 2.0 is outside"),
        ("--out .", "is a folder; name a file in it"),
        ("--against llama.cpp --temperature 1", "llama.cpp compares greedy output"),
    ],
    ids=["k", "temperature", "acceptance", "out", "sampling"],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(words, says, monkeypatch):
    monkeypatch.setattr(loaded_pair, "load_side", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setattr(sys, "argv", ["specdec", "bench", "--pair", "micro", *words.split()])
    with pytest.raises(SpecdecError, match=says):
        command.main()


def test_random_weights_demand_a_forced_rate(monkeypatch):
    monkeypatch.setattr(run, "needs_synthetic_acceptance", lambda pair: True)
    with pytest.raises(SpecdecError, match="add --synthetic-acceptance 0.8"):
        benchmark(Settings("micro"), show=print)


def test_a_number_below_one_is_refused():
    with pytest.raises(SpecdecError, match="--repeats 0 is below 1"):
        benchmark(Settings("micro", repeats=0), show=print)


def test_the_page_leaves_out_what_is_not_known(tiny_pair):
    document, _ = settled(tiny_pair, Settings(**vars(SMALL) | {"prompts": 1, "k": (2,)}))
    assert "nan" not in format_table(document) + format_findings(document)
    assert math.isnan(document["rows"][1]["S"]["low"])  # one prompt gives no interval
