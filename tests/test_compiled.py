"""The fast engine gives the reference's tokens: the same output, the same counts, every round.

Most tests run its pieces as they are before compilation, since compiling takes seconds a piece; a
few compile. On a GPU the same pieces are captured: tests/test_capture.py.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM

from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.generation import Generation
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.engine import compiler, fast_model, pieces
from specdec.method.sampling import Greedy, Rejection, Sampling, Warp, make_noise
from specdec.models.cache import SLOTS_STEP, FixedCache
from specdec.utils.errors import SpecdecError
from tests.checks import needs_compiler
from tests.distribution import SIGNIFICANCE, joint_fit
from tests.tiny import KINDS, make_model, make_tokenizer, perturbed, table_pair, wrap

PROMPTS = [[5, 9, 2, 7, 300], [11], list(range(20, 60))]
SAMPLING = [
    dict(temperature=0.0),
    dict(temperature=0.8),
    dict(temperature=1.0, top_k=5),
    dict(temperature=0.7, top_p=0.9),
]


@pytest.fixture(scope="module", params=KINDS)
def models(request):
    """`(draft, target)` in float64, of each architecture."""
    target = make_model(request.param, dtype=torch.float64)
    return wrap(perturbed(target)), wrap(target)


@pytest.fixture
def fresh_models(models):
    """The same, of which nothing is compiled yet."""
    return tuple(wrap(wrapper.model) for wrapper in models)


def both_engines(make, prompt, tokens=30, **settings):
    """The results of the reference and of the fast engine, which must have run."""
    reference = make("eager").generate(prompt, tokens, seed=3, **settings)
    fast = make("compiled").generate(prompt, tokens, seed=3, **settings)
    assert (reference.engine, fast.engine) == ("eager", "compiled")
    return reference, fast


def assert_same(reference, fast):
    assert fast.generated_ids == reference.generated_ids
    assert fast.accepted_per_round == reference.accepted_per_round
    assert fast.proposed_per_round == reference.proposed_per_round
    assert fast.finish_reason == reference.finish_reason


@pytest.mark.parametrize("settings", SAMPLING, ids=str)
@pytest.mark.parametrize("k", [1, 4])
def test_rounds_of_fixed_shape_give_the_references_tokens(uncompiled, models, k, settings):
    for prompt in PROMPTS:
        results = both_engines(
            lambda engine: SpeculativeDecoder(*models, k, engine=engine),
            prompt,
            eos_token_id=None,
            **settings,
        )
        assert_same(*results)
        assert results[1].engine_reason is None


@pytest.mark.parametrize("settings", SAMPLING, ids=str)
def test_the_baseline_gives_the_references_tokens(uncompiled, models, settings):
    results = both_engines(
        lambda engine: AutoregressiveDecoder(models[1], engine=engine),
        PROMPTS[0],
        eos_token_id=None,
        **settings,
    )
    assert_same(*results)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_coupled_rounds_give_the_coupled_baselines_tokens(uncompiled, models, temperature):
    reference = AutoregressiveDecoder(models[1], coupled=True, engine="eager")
    fast = SpeculativeDecoder(*models, 3, coupled=True, engine="compiled")
    settings = dict(temperature=temperature, seed=4, eos_token_id=None)
    ours = fast.generate(PROMPTS[0], 30, **settings)
    assert ours.generated_ids == reference.generate(PROMPTS[0], 30, **settings).generated_ids
    assert ours.engine == "compiled"


@pytest.mark.parametrize("budget", [1, 2, 3, 7])
def test_no_budget_is_overrun(uncompiled, models, budget):
    for k in (1, 4):
        results = both_engines(
            lambda engine, k=k: SpeculativeDecoder(*models, k, engine=engine),
            PROMPTS[0],
            budget,
            eos_token_id=None,
        )
        assert_same(*results)
        assert results[1].num_tokens == budget


def test_an_end_token_inside_a_block_is_the_last(uncompiled):
    target = wrap(make_model(dtype=torch.float64))
    free = AutoregressiveDecoder(target).generate(PROMPTS[0], 30, eos_token_id=None)
    for place in (1, 2, 5):
        end = [free.generated_ids[place], 383]
        results = both_engines(
            lambda engine: SpeculativeDecoder(target, target, 4, engine=engine),
            PROMPTS[0],
            eos_token_id=end,
        )
        assert_same(*results)
        assert results[1].generated_ids[-1] == end[0] and results[1].finish_reason == "stop"


def test_a_finished_sequence_does_not_advance():
    decision = pieces.Decision(Sampling(Greedy))
    logits = torch.eye(4, dtype=torch.float64)[[1, 2, 3]]  # the target chooses 1, 2, 3
    block, state = torch.tensor([0, 1, 2]), torch.tensor([3, 0, 5, 6, 2, 0])

    def decide(limits, state=state):
        q, noise = torch.zeros(0), torch.zeros(2, dtype=torch.bool)
        padded = torch.tensor(limits + [-1] * (9 - len(limits)))
        return decision(logits, block, q, state, padded, noise, torch.ones(()))

    result, moved = decide([100])
    assert result.tolist() == [2, 2, 1, 1, 2, 3] and moved.tolist() == [2, 3, 8, 9, 5, 0]
    _, moved = decide([100, 2])  # the second token is an end
    assert moved.tolist() == [1, 2, 7, 8, 4, 1]
    assert decide([100, 2], moved)[1].tolist() == moved.tolist()
    _, moved = decide([3])  # room for one token
    assert moved.tolist() == [0, 1, 6, 7, 3, 0]
    assert decide([3], moved)[1].tolist() == moved.tolist()


def test_a_draft_may_read_another_prompt(uncompiled, models):
    for own in ([3], [1, 2, 3, 4, 5, 6, 7, 8]):
        results = both_engines(
            lambda engine: SpeculativeDecoder(*models, 3, engine=engine),
            PROMPTS[0],
            draft_prompt_ids=own,
            eos_token_id=None,
        )
        assert_same(*results)


def test_logits_wider_than_the_tokenizer_are_cut_on_both_sides(uncompiled, tiny_tokenizer):
    size = len(tiny_tokenizer)
    target = make_model(vocab_size=size + 40, dtype=torch.float64)
    draft = make_model(vocab_size=size + 8, dtype=torch.float64, seed=0)
    wrappers = wrap(draft, tiny_tokenizer), wrap(target, tiny_tokenizer)
    for settings in SAMPLING[:2]:
        results = both_engines(
            lambda engine: SpeculativeDecoder(*wrappers, 3, engine=engine),
            PROMPTS[0],
            eos_token_id=None,
            **settings,
        )
        assert_same(*results)


def test_a_long_output_grows_past_the_first_slots(uncompiled, models):
    results = both_engines(
        lambda engine: SpeculativeDecoder(*models, 3, engine=engine),
        PROMPTS[0],
        3 * SLOTS_STEP,
        eos_token_id=None,
    )
    assert_same(*results)


def test_a_request_knows_nothing_of_the_one_before(uncompiled, models):
    decoder = SpeculativeDecoder(*models, 3, engine="compiled")
    first = decoder.generate(PROMPTS[0], 30, eos_token_id=None)
    decoder.generate(PROMPTS[2], 60, eos_token_id=None)
    again = decoder.generate(PROMPTS[0], 30, eos_token_id=None)
    assert_same(first, again)


@pytest.mark.parametrize("method", ["intersection", "exact_match"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_draft_of_another_vocabulary_has_the_targets_pass_compiled(
    uncompiled, method, temperature
):
    mine, other = make_tokenizer(384), make_tokenizer(300)
    target = wrap(make_model(vocab_size=len(mine), dtype=torch.float64), mine)
    draft = wrap(make_model(vocab_size=len(other), dtype=torch.float64), other)
    prompt = mine.encode("The quick brown")
    results = both_engines(
        lambda engine: SpeculativeDecoder(draft, target, 3, vocabulary=method, engine=engine),
        prompt,
        temperature=temperature,
        eos_token_id=None,
    )
    assert_same(*results)
    assert "driven from the host" in results[1].engine_reason


@pytest.mark.parametrize("warp", [dict(temperature=1.0), dict(temperature=0.8, top_k=2)], ids=str)
def test_what_the_fast_engine_emits_follows_the_targets_distribution(uncompiled, warp):
    decoder = SpeculativeDecoder(*table_pair(), 2, engine="compiled")
    fit = joint_fit(decoder, [0, 1, 2], 4, **warp)
    assert fit.p_value > SIGNIFICANCE, fit


def caches_roll_back_one_too_few(monkeypatch):
    right = pieces.Decision.forward

    def forward(self, *arguments):
        result, state = right(self, *arguments)
        moved = state.clone()
        moved[pieces.DRAFT_LENGTH : pieces.TARGET_LENGTH + 1] += 1
        return result, moved

    monkeypatch.setattr(pieces.Decision, "forward", forward)


def temperature_forgotten_on_the_target(monkeypatch):
    right = pieces.Decision.forward

    def forward(self, logits, *arguments):
        return right(self, logits * arguments[-1], *arguments)

    monkeypatch.setattr(pieces.Decision, "forward", forward)


def uniforms_of_the_wrong_place(monkeypatch):
    right = pieces.DraftChoice.forward

    def forward(self, logits, position, noise, temperature):
        # Draws with another purpose's.
        return right(self, logits, position, noise.roll(1, dims=1), temperature)

    monkeypatch.setattr(pieces.DraftChoice, "forward", forward)


MUTANTS = [
    caches_roll_back_one_too_few,
    temperature_forgotten_on_the_target,
    uniforms_of_the_wrong_place,
]


@pytest.mark.parametrize("break_engine", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_joint_distribution_rejects_a_broken_round(uncompiled, monkeypatch, break_engine):
    break_engine(monkeypatch)
    decoder = SpeculativeDecoder(*table_pair(), 2, engine="compiled")
    assert joint_fit(decoder, [0, 1, 2], 4, temperature=0.6).p_value < SIGNIFICANCE


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_synthetic_acceptance_accepts_at_its_rate(uncompiled, engine, rate):
    draft, target = table_pair()
    decoder = SpeculativeDecoder(draft, target, 3, engine=engine, synthetic_acceptance=rate)
    result = decoder.generate([0, 1], 1500, seed=1, eos_token_id=None)
    decided = sum(min(kept + 1, 3) for kept in result.accepted_per_round[:-1])
    accepted = sum(result.accepted_per_round[:-1])
    spread = (rate * (1 - rate) / decided) ** 0.5
    assert abs(accepted / decided - rate) <= 4 * spread


def test_synthetic_acceptance_samples_nothing():
    decoder = SpeculativeDecoder(*table_pair(), 2, synthetic_acceptance=0.8)
    with pytest.raises(SpecdecError, match="temperature 0"):
        decoder.generate([0, 1], 5, temperature=0.7)
    with pytest.raises(SpecdecError, match="outside"):
        SpeculativeDecoder(*table_pair(), 2, synthetic_acceptance=1.5)


@pytest.mark.parametrize("settings", SAMPLING[:2], ids=str)
@pytest.mark.parametrize("k", [0, 2])
def test_a_whole_round_is_one_graph(models, k, settings):
    """Traced by the compiler with no graph break, and nothing read on the host."""
    sampling = SpeculativeDecoder(*models, 2)._sampling(Warp(**settings))
    draft, target = (pieces.ModelPass(wrapper.model, wrapper.vocab_size) for wrapper in models)
    choose = pieces.DraftChoice(sampling, models[0].vocab_size, models[1].vocab_size)
    caches = [FixedCache(wrapper.forward(torch.zeros(1, 1).long())[1], 64) for wrapper in models]
    on = pieces.RoundTensors(
        limits=torch.tensor([20, *[-1] * pieces.END_TOKENS]),
        noise=make_noise(sampling, 1, 64, "cpu"),
        temperature=torch.ones((), dtype=torch.float64),
        target=caches[1].first(64),
        draft=caches[0].first(64),
    )
    whole_round = pieces.Round(target, pieces.Decision(sampling), draft, choose)

    def run(state):
        return whole_round(k, state, on, nullcontext)

    state = torch.tensor([5, 9, 0, 1, 1, 0])
    torch._dynamo.reset()
    traced = torch.compile(run, fullgraph=True, dynamic=False, backend="eager")
    for ours, theirs in zip(traced(state), run(state), strict=True):
        assert torch.equal(ours, theirs)


def test_auto_is_eager_until_it_is_prepared(uncompiled, models):
    decoder = SpeculativeDecoder(*models, 2)
    result = decoder.generate(PROMPTS[0], 5)
    assert result.engine == "eager" and "prepare()" in result.engine_reason
    decoder.prepare()
    assert decoder.generate(PROMPTS[0], 5).engine == "compiled"
    assert decoder.generate(PROMPTS[0], 5, temperature=1.0).engine == "eager"


def test_an_engine_that_there_is_not_is_refused(models):
    with pytest.raises(SpecdecError, match="auto, eager, compiled"):
        SpeculativeDecoder(*models, 2, engine="fast")


@pytest.fixture
def refuse(monkeypatch):
    """`refuse(kind, message, of)`: a compiler that fails for these modules, of one model or all."""

    def set_up(kind: type, message: str, of: torch.nn.Module | None = None) -> None:
        def compile_ahead(module, *rest):
            if isinstance(module, kind) and (of is None or module.model is of):
                raise RuntimeError(message)
            return module

        monkeypatch.setattr(fast_model, "compile_ahead", compile_ahead)

    return set_up


def test_without_a_compiler_auto_says_so_and_runs_eagerly(refuse, fresh_models):
    refuse(torch.nn.Module, "no working C++ compiler was found")
    decoder = SpeculativeDecoder(*fresh_models, 2)
    decoder.prepare()
    result = decoder.generate(PROMPTS[0], 5)
    assert result.engine == "eager" and "no working C++ compiler" in result.engine_reason
    with pytest.raises(SpecdecError, match="no working C\\+\\+ compiler.*auto"):
        SpeculativeDecoder(*fresh_models, 2, engine="compiled").generate(PROMPTS[0], 5)


def test_a_baseline_whose_draw_cannot_be_compiled_runs_eagerly(refuse, fresh_models):
    refuse(pieces.Decision, "no such operation")
    decoder = AutoregressiveDecoder(fresh_models[1])
    decoder.prepare()
    result = decoder.generate(PROMPTS[0], 5)
    assert result.engine == "eager" and "no such operation" in result.engine_reason


def test_a_draft_that_cannot_be_compiled_runs_eagerly_before_a_compiled_target(
    refuse, fresh_models
):
    draft, target = fresh_models
    refuse(pieces.ModelPass, "its library is not for compilers", of=draft.model)
    results = both_engines(
        lambda engine: SpeculativeDecoder(draft, target, 2, engine=engine), PROMPTS[0]
    )
    assert_same(*results)
    assert "its library is not for compilers" in results[1].engine_reason


def test_what_compiles_and_then_fails_its_first_pass_was_not_compiled(monkeypatch, fresh_models):
    """Compilers find out late what they can't do (seen: Falcon with ALiBi)."""

    def compile_ahead(module, *rest):
        def refuse(*arguments):
            raise RuntimeError("Expected Eq(s33, u2) but received 21")

        return refuse if isinstance(module, pieces.ModelPass) else module

    monkeypatch.setattr(fast_model, "compile_ahead", compile_ahead)
    target = fresh_models[1]
    for make in (AutoregressiveDecoder, lambda *a, **s: SpeculativeDecoder(target, *a, 2, **s)):
        decoder = make(target)
        decoder.prepare()
        result = decoder.generate(PROMPTS[0], 5)
        assert result.engine == "eager" and "Expected Eq(s33, u2)" in result.engine_reason
        with pytest.raises(SpecdecError, match="can't be compiled: .*Expected Eq.*'auto'"):
            make(target, engine="compiled").generate(PROMPTS[0], 5)


@pytest.fixture
def compiled_modules(monkeypatch):
    """What was given to the compiler, which leaves it as it is."""
    modules = []

    def compile_ahead(module, *rest):
        modules.append(module)
        return module

    monkeypatch.setattr(fast_model, "compile_ahead", compile_ahead)
    return modules


def test_one_compilation_of_a_model_serves_every_k_and_both_decoders(
    compiled_modules, fresh_models
):
    draft, target = fresh_models
    for budget in (10, 3 * SLOTS_STEP):
        AutoregressiveDecoder(target, engine="compiled").generate(PROMPTS[0], budget)
        for k in (1, 2, 4):
            SpeculativeDecoder(draft, target, k, engine="compiled").generate(PROMPTS[0], budget)
    passes = [module for module in compiled_modules if isinstance(module, pieces.ModelPass)]
    assert sorted(map(id, (module.model for module in passes))) == sorted(
        map(id, (draft.model, target.model))
    )
    assert len(compiled_modules) == 3  # and one decision


@pytest.mark.parametrize("settings", SAMPLING[:2], ids=str)
@pytest.mark.parametrize("vocabulary", ["one", "two"])
def test_nothing_is_compiled_while_a_clock_runs(monkeypatch, settings, vocabulary):
    running, compiled = [], []
    start, result = Generation.start_clock, Generation.result

    def compile_ahead(module, *rest):
        compiled.append(bool(running))
        return module

    def start_clock(run):
        running.append(run)
        start(run)

    def finished(run, **others):
        running.clear()
        return result(run, **others)

    monkeypatch.setattr(fast_model, "compile_ahead", compile_ahead)
    monkeypatch.setattr(Generation, "start_clock", start_clock)
    monkeypatch.setattr(Generation, "result", finished)
    tokenizers = [make_tokenizer(384), make_tokenizer(384 if vocabulary == "one" else 300)]
    target, draft = (
        wrap(make_model(vocab_size=len(tokenizer), dtype=torch.float64), tokenizer)
        for tokenizer in tokenizers
    )
    for decoder in (
        AutoregressiveDecoder(target, engine="compiled"),
        SpeculativeDecoder(draft, target, 3, engine="compiled"),
    ):
        for prompt, budget in ((PROMPTS[0], 5), (PROMPTS[2], 2 * SLOTS_STEP)):
            assert decoder.generate(prompt, budget, **settings).engine == "compiled"
    assert compiled and not any(compiled)


@needs_compiler
@pytest.mark.slow
def test_a_model_that_the_compiler_gets_wrong_runs_eagerly(tmp_path, monkeypatch):
    """Falcon with ALiBi: where its pass can't be compiled, `auto` goes on and says why."""
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path))
    config = FalconConfig(
        vocab_size=384, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, alibi=True
    )
    target = wrap(FalconForCausalLM(config))
    decoder = SpeculativeDecoder(target, target, 2)
    decoder.prepare()
    result = decoder.generate(PROMPTS[0], 12, eos_token_id=None)
    expected = AutoregressiveDecoder(target, engine="eager").generate(
        PROMPTS[0], 12, eos_token_id=None
    )
    assert result.generated_ids == expected.generated_ids
    assert result.engine == "compiled" or "can't be compiled" in result.engine_reason


@needs_compiler
@pytest.mark.slow
def test_a_vocabulary_of_few_tokens_is_compiled_right(tmp_path, monkeypatch):
    """The example's draft tokens were none of a vocabulary of 3: its rule couldn't be compiled."""
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path))
    target = wrap(make_model(vocab_size=3))
    fast_model.fast_model(target).decide(Sampling(Rejection))  # is tried with other numbers of rows


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("settings", SAMPLING[:2], ids=str)
def test_compiled_rounds_give_the_references_tokens(monkeypatch, tiny_tokenizer, settings):
    """With the real compiler; a second decoder finds its work on disk."""
    target = make_model("llama", len(tiny_tokenizer))  # as other tests have it compiled
    wrappers = wrap(perturbed(target)), wrap(target)
    results = both_engines(
        lambda engine: SpeculativeDecoder(*wrappers, 2, engine=engine), PROMPTS[0], **settings
    )
    assert_same(*results)
    monkeypatch.setattr(compiler, "_compile", None)  # not to be called again
    again = SpeculativeDecoder(*wrappers, 2, engine="compiled")
    assert_same(results[0], again.generate(PROMPTS[0], 30, seed=3, **settings))
    assert again.preparation_seconds < 5
