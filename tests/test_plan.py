"""`python -m specdec plan`: what speculation would cost here, from random weights of the sizes."""

import json
from dataclasses import replace
from time import perf_counter

import numpy as np
import pytest
import torch

from specdec import __main__ as command
from specdec.analysis.theory import speedup, tokens_per_round
from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.models.loading import configuration, memory_check
from specdec.models.loading.random_weights import load_random_weights
from specdec.models.registry import ModelSide, get_pair, with_random_weights
from specdec.models.wrapper import ModelWrapper
from specdec.planning import costs, plan
from specdec.planning.costs import Costs, Estimate, make_request, measure_costs, ratio
from specdec.planning.measure import (
    interleave,
    reader,
    time_pass,
    time_round_rest,
    time_rule,
    time_step_rest,
)
from specdec.planning.page import format_card, format_table
from specdec.planning.plan import ALPHAS, make_card, make_plan
from specdec.utils.errors import SpecdecError

CPU = torch.device("cpu")
SIZES = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def side(layers: int, **sizes) -> ModelSide:
    shape = SIZES | {"num_hidden_layers": layers} | sizes
    return ModelSide("llama", "float32", weights="random", shape=shape)


def request(draft=None, context: int = 8, ks: tuple[int, ...] = (1, 3)) -> costs.Request:
    return costs.Request("tiny", draft or side(1), side(3), list(ks), context, CPU, seconds=0)


def known(c: float = 0.2, v: float = 1.1, h: float = 0.05, h0: float = 0.02) -> Costs:
    c, v, h, h0 = (Estimate(x, 0.9 * x, 1.1 * x) for x in (c, v, h, h0))
    return Costs(c, {1: v, 3: v}, {1: h, 3: h}, h0, 0.001, 0.005, "nothing")


BEST = [None, 1, 1, 3, 3, 3]  # K at each α, of a draft step of 0.42 target steps


@pytest.fixture(scope="module")
def wrapper():
    return load_random_weights(side(2))


class TestMeasures:
    def test_a_pass_leaves_the_session_as_it_was(self, wrapper):
        session = reader(wrapper, 8, [3], "eager")
        before = session.read(torch.tensor([3]), keep=1).logits
        session.roll_back(8)
        assert time_pass(wrapper, session, 5) > 0
        assert session.length == 8
        assert torch.equal(session.read(torch.tensor([3]), keep=1).logits, before)

    @pytest.mark.parametrize("engine", ["eager", "compiled"])
    def test_the_context_is_there_without_being_read(
        self, wrapper, engine, monkeypatch, uncompiled
    ):
        read = []
        call = ModelWrapper._call

        def spy(self, ids, *rest, **others):
            read.append(ids.shape[1])
            return call(self, ids, *rest, **others)

        monkeypatch.setattr(ModelWrapper, "_call", spy)
        session = reader(wrapper, 40, [3], engine)
        assert session.length == 40 and set(read) == {1}
        assert session.read(torch.tensor([3, 4]), keep=2).logits.shape == (2, wrapper.vocab_size)
        assert session.length == 42

    def test_what_is_compiled_is_compiled_before_the_first_sample(self, monkeypatch, uncompiled):
        """A budget may leave time for no other sample."""
        compiled = []
        compile_ahead = lambda module, *_: compiled.append(module) or module  # noqa: E731
        monkeypatch.setattr("specdec.engine.fast_model.compile_ahead", compile_ahead)
        own = load_random_weights(side(2))
        session = reader(own, 8, [1], "compiled")
        before = len(compiled)
        time_pass(own, session, 1)
        assert before == len(compiled) == 1

    def test_the_rest_of_a_round_is_what_its_passes_leave(self, wrapper):
        both = SpeculativeDecoder(wrapper, wrapper, 2, engine="eager", synthetic_acceptance=0.5)
        assert 0 < time_round_rest(both, 8) < 0.1

    def test_the_rest_of_a_step_is_what_its_pass_leaves(self, wrapper):
        assert 0 < time_step_rest(AutoregressiveDecoder(wrapper, engine="eager"), 8) < 0.1

    @pytest.mark.parametrize("rows", [1, 4])
    def test_the_rule_is_timed_alone(self, rows):
        assert 0 < time_rule(torch.randn(rows, 50)) < 0.1

    def test_measures_take_turns_and_their_first_samples_do_not_count(self):
        calls = []

        def measure(name):
            return lambda: calls.append(name) or len(calls)

        samples = interleave({"a": measure("a"), "b": measure("b")}, seconds=0, at_least=2)
        assert calls == ["a", "b", "a", "b", "b", "a"]
        assert {name: list(values) for name, values in samples.items()} == {
            "a": [3, 6],
            "b": [4, 5],
        }

    def test_past_the_deadline_no_turn_begins_and_the_first_samples_count(self):
        shown = []
        samples = interleave(
            {"a": lambda: 1.0, "b": lambda: 2.0},
            seconds=60,
            at_least=7,
            deadline=perf_counter(),
            show=lambda *measured: shown.append(measured),
        )
        assert shown == [("a", 1.0), ("b", 2.0)]
        assert {name: list(values) for name, values in samples.items()} == {"a": [1], "b": [2]}

    def test_past_the_deadline_what_is_not_essential_is_left_out(self):
        measures = {"a": lambda: 1.0, "b": lambda: 2.0, "c": lambda: 3.0}
        samples = interleave(measures, 60, 1, deadline=perf_counter(), essential=2)
        assert list(samples) == ["a", "b"]

    def test_none_begins_that_would_end_past_the_deadline_if_it_took_as_long_as_the_last(
        self, monkeypatch
    ):
        clock = [0.0]
        monkeypatch.setattr("specdec.planning.measure.perf_counter", lambda: clock[0])

        def taking(seconds):
            def measure():
                clock[0] += seconds
                return seconds

            return measure

        measures = {"a": taking(20), "b": taking(40), "c": taking(60), "d": taking(100)}
        for deadline, taken in ((99, ["a", "b"]), (100, ["a", "b", "c"]), (180, [*"abcd"])):
            clock[0] = 0.0
            assert list(interleave(measures, 60, 1, deadline, essential=1)) == taken

    def test_an_interruption_leaves_the_turns_that_are_whole(self):
        calls = iter(range(5))  # a warm-up of each, a turn, and half of one

        def measure():
            try:
                return float(next(calls))
            except StopIteration:
                raise KeyboardInterrupt from None

        times = {}
        with pytest.raises(KeyboardInterrupt):
            interleave({"a": measure, "b": measure}, seconds=60, at_least=1, times=times)
        assert {name: list(values) for name, values in times.items()} == {"a": [2], "b": [3]}


class TestRatio:
    def test_it_is_of_medians_within_its_interval(self):
        above, below = np.array([2.0, 2.2, 1.9, 90.0, 2.1]), np.array([1.0, 1.1, 0.9, 1.0, 1.0])
        estimate = ratio(above, below, paired=False)
        assert estimate.value == pytest.approx(2.1)
        assert estimate.low <= estimate.value <= estimate.high

    def test_a_machine_that_drifts_does_not_widen_the_interval_of_times_taken_in_turn(self):
        drift = np.linspace(1, 3, 20)
        paired = ratio(0.3 * drift, drift, paired=True)
        apart = ratio(0.3 * drift, drift, paired=False)
        assert paired.low == pytest.approx(0.3) and paired.high == pytest.approx(0.3)
        assert apart.high - apart.low > 0.05

    def test_one_sample_has_no_interval(self):
        assert np.isnan(ratio(np.array([1.0]), np.array([2.0]), paired=True).low)


class TestCosts:
    def test_both_models_are_measured_and_the_overhead_is_of_real_rounds(self):
        measured = measure_costs(request())
        assert measured.overhead_of.startswith("rounds with acceptance forced at 0.8")
        assert list(measured.v) == list(measured.h) == [1, 3]
        assert 0 < measured.c.value < 1
        assert measured.draft_step < measured.target_step

    def test_two_vocabulary_sizes_are_timed_and_the_overhead_is_of_the_rule_alone(self):
        measured = measure_costs(request(side(1, vocab_size=300)))
        assert measured.overhead_of == "the acceptance rule alone (two vocabulary sizes)"
        assert all(estimate.value > 0 for estimate in measured.h.values())

    def test_models_that_do_not_fit_together_are_measured_one_after_the_other(self, monkeypatch):
        need = memory_check.needed_bytes([side(3)], CPU)
        for module in (costs, memory_check):
            monkeypatch.setattr(module, "available_bytes", lambda _: need)
        measured = measure_costs(request())
        assert measured.overhead_of == "the acceptance rule alone (one model at a time fits)"
        assert measured.c.value > 0

    def test_a_model_that_does_not_fit_at_all_is_refused_before_any_is_built(self, monkeypatch):
        for module in (costs, memory_check):
            monkeypatch.setattr(module, "available_bytes", lambda _: 1000)
        monkeypatch.setattr(costs, "load_random_weights", lambda *_: pytest.fail("built"))
        with pytest.raises(SpecdecError, match="pair tiny, llama .* alone: needs"):
            measure_costs(request())

    def test_without_time_the_smallest_K_is_measured_once_and_the_rule_alone(self, caplog):
        measured = measure_costs(replace(request(), seconds=60, budget=0))
        assert "no time for K = 3 within --budget" in caplog.messages
        assert measured.overhead_of.startswith("the acceptance rule alone (--budget")
        assert measured.c.value > 0 and np.isnan(measured.c.low)
        assert list(measured.v) == list(measured.h) == [1]
        once = "each pass was timed once, so c and v have no interval"
        assert once in format_table(make_plan(make_card(request()), measured))
        assert once not in format_table(make_plan(make_card(request()), known()))

    def test_each_quantity_is_told_as_it_comes_with_the_time_that_remains(self, caplog):
        with caplog.at_level("INFO"):
            measure_costs(replace(request(), budget=50))
        told = [line for line in caplog.messages if "ms, " in line]
        names = [line.partition("  ")[0].strip() for line in told]
        assert names == [
            "draft 1",
            "target 1",
            "target 2",
            "target 4",
            "rest 0",
            "rest 1",
            "rest 3",
        ]
        assert all("s remain" in line for line in told)

    @pytest.mark.parametrize(
        ("stop_at", "ks", "overhead"),
        [("target 4", [1], "nothing: "), ("rest 1", [1, 3], "nothing: "), ("target 2", None, None)],
        ids=["in the passes", "in the rounds", "too early"],
    )
    def test_an_interruption_gives_what_is_known(self, monkeypatch, stop_at, ks, overhead):
        def stopped(measures, *rest):
            def stop():
                raise KeyboardInterrupt

            return interleave({n: stop if n == stop_at else m for n, m in measures.items()}, *rest)

        monkeypatch.setattr(costs, "interleave", stopped)
        if ks is None:
            with pytest.raises(KeyboardInterrupt):
                measure_costs(request())
            return
        measured = measure_costs(request())
        assert measured.interrupted and list(measured.v) == ks
        assert measured.overhead_of.startswith(overhead)
        assert [measured.h[k].value for k in ks] == [0] * len(ks)

    def test_a_context_that_is_too_long_is_refused(self):
        with pytest.raises(SpecdecError, match="--context .* is 76 tokens, .* is 64"):
            measure_costs(request(context=64))

    def test_a_registered_pair_is_planned_without_its_weights(self):
        made = make_request(get_pair("gpt2_dev"), [1], 256, CPU, 1, dtype="float32")
        assert made.draft == with_random_weights(ModelSide("gpt2", "float32"))
        assert make_card(made)["target"]["parameters"] == 1_557_611_200


class TestPlan:
    def test_the_speedup_is_that_of_theory(self):
        made = make_plan(make_card(request()), known())
        for row in made["rows"]:
            for alpha in ALPHAS:
                tau = tokens_per_round(alpha, row["K"])
                expected = speedup(tau, row["K"], 0.2, 1.1, 0.05, 0.02)
                assert row["S"][str(alpha)] == pytest.approx(expected)
        assert made["rows"][0]["break_even_alpha"] == pytest.approx(1.35 / 1.02 - 1)

    def test_the_best_k_is_the_fastest_or_none(self):
        # A round takes 1.57 target steps at K = 1, and 2.41 at K = 3; a baseline step 1.02.
        made = make_plan(make_card(request()), known(c=0.42))
        assert made["best_K"] == dict(zip("0.5 0.6 0.7 0.8 0.9 1.0".split(), BEST, strict=True))

    def test_a_draft_as_slow_as_its_target_never_pays(self):
        made = make_plan(make_card(request()), known(c=1.2))
        assert [row["break_even_alpha"] for row in made["rows"]] == [None, None]
        assert set(made["best_K"].values()) == {None}
        page = format_table(made)
        assert page.count("never") == 2
        assert "0.5: target alone" in page

    def test_the_card_tells_the_memory_of_each_side(self):
        card = make_card(request())
        # Keys and values of 3 layers, 2 heads of 8 numbers, 4 bytes each.
        assert card["target"]["cache_gb_per_1000_tokens"] * 1e9 == 1000 * 2 * 3 * 2 * 8 * 4
        assert card["needed_gb"] * 1e9 == pytest.approx(
            1.1 * 4 * (card["draft"]["parameters"] + card["target"]["parameters"])
        )
        page = format_card(card)
        assert page.startswith("plan for tiny: random weights of its sizes, eager, 8 tokens")
        assert "float32" in page and "both at once" in page

    def test_a_dtype_that_is_slow_here_is_said_on_the_card(self, monkeypatch):
        monkeypatch.setattr(plan, "slowdown", lambda dtype, device: 30.0)
        half = replace(side(1), dtype="float16")
        page = format_card(make_card(request(half)))
        assert "float16: products take up to 30 times as long as in float32" in page
        assert "as long as" not in format_card(make_card(request()))

    def test_what_was_measured_once_has_no_interval_and_stays_json(self):
        nan = float("nan")
        single = known()
        single = Costs(
            single.c, single.v, single.h, Estimate(0.1, nan, nan), 0.001, 0.005, "one sample"
        )
        made = make_plan(make_card(request()), single)
        assert json.loads(json.dumps(made, allow_nan=False))["h0"] == {
            "value": 0.1,
            "low": None,
            "high": None,
        }
        assert "h₀ 0.100;" in format_table(made)


class TestCommand:
    def run(self, monkeypatch, *arguments):
        monkeypatch.setattr("sys.argv", ["specdec", "plan", *arguments])
        command.main()

    def test_it_prints_a_card_a_table_and_last_one_line_of_json(
        self, monkeypatch, capsys, tmp_path
    ):
        path = tmp_path / "pairs.yaml"
        shapes = {name: json.dumps(side(n).shape) for name, n in (("draft", 1), ("target", 3))}
        path.write_text(
            "tiny:\n"
            + "\n".join(
                f"  {name}: {{dtype: float32, weights: random, shape: {shape}}}"
                for name, shape in shapes.items()
            )
        )
        monkeypatch.setattr(
            configuration, "check_available", lambda *_: pytest.fail("the hub was asked")
        )
        options = ["--registry", str(path), "--k", "3", "1", "--context", "8", "--seconds", "0"]
        self.run(monkeypatch, "--pair", "tiny", "--device", "cpu", *options)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("plan for tiny")
        document = json.loads(lines[-1])
        assert [row["K"] for row in document["rows"]] == [1, 3]
        assert document["threads"] == 1
        head = next(line for line in lines if line.startswith("K"))
        assert "break-even α" in head and "S at α=1.0" in head
        assert any(line.startswith("best K by α: 0.5: ") for line in lines)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--k", "0"], "--k: 0 is below 1"),
            (["--context", "0"], "--context: 0 is below 1"),
            (["--threads", "0"], "threads: 0 is below 1"),
            (["--k", "-1"], "--k: -1 is below 1"),
            (["--budget", "nan"], "--budget: nan is no number"),
            (["--context", "1100"], "the context of .* is 1024"),
        ],
    )
    def test_a_wrong_argument_is_one_line(self, monkeypatch, options, says):
        with pytest.raises(SpecdecError, match=says):
            self.run(monkeypatch, "--pair", "micro", "--device", "cpu", *options)
