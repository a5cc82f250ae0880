"""The certificate of a pair: right engines pass, and each engine broken on purpose does not."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import re
import sys

import pytest
import torch
import yaml

from specdec import __main__ as command
from specdec.certification import certificate, greedy, page, sampling
from specdec.certification.greedy import DEFECT, NEAR_TIE, Parting, check_greedy
from specdec.certification.prompts import load_prompts
from specdec.certification.rule import check_rule
from specdec.certification.sampling import check_samples, draw
from specdec.data.dataset import Prompt, PromptDataset
from specdec.data.prompts import Limit, digest
from specdec.decoding.drafters.bridged import IntersectionDrafting
from specdec.decoding.loaded_pair import Encoded, LoadedPair
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.engine import fast_model
from specdec.engine.pieces import ModelPass, likeliest
from specdec.method import rule as rejection
from specdec.method import sampling as decoding_sampling
from specdec.method.sampling import Greedy
from specdec.models.registry import ModelPair, ModelSide, get_pair
from specdec.models.wrapper import ModelWrapper
from specdec.utils import at_once
from specdec.utils.at_once import do_all
from specdec.utils.errors import SpecdecError
from tests.study import make_project
from tests.test_mutants import LOSSY
from tests.test_other_vocabulary import toy
from tests.tiny import TableModel, make_model, make_table, perturbed, wrap

PROMPTS = [
    Prompt(f"code_{i:03d}", "code", f"def add_{i}(a, b):\n    return a + {i} * b\n", 20)
    for i in range(3)
]


class Table(TableModel):
    """A table model that also reads several texts at once, where it keeps no cache."""

    def forward(self, input_ids, past_key_values=None, use_cache=True, logits_to_keep=0):
        if past_key_values is not None:
            return super().forward(input_ids, past_key_values, use_cache)
        one_by_one = [super(Table, self).forward(row[None]) for row in input_ids]
        one_by_one[0].logits = torch.cat([output.logits for output in one_by_one])
        return one_by_one[0]


def table_decoders(seed=0):
    """The decoder of a pair of tables, by its draft tokens."""
    target, draft = (wrap(Table(make_table(4, seed + i))) for i in range(2))
    return lambda k: SpeculativeDecoder(draft, target, k, engine="eager")


CONTEXTS = [Encoded([0, 1, 2]), Encoded([3])]


def certified(decoder_of, contexts=CONTEXTS, generations=32):
    every = [draw(decoder_of, contexts, setting, generations) for setting in sampling.SETTINGS]
    return check_samples(every, len(contexts))


@pytest.fixture(scope="module")
def right_part():
    return certified(table_decoders())


def test_sampling_of_a_right_engine_passes_and_states_its_power(right_part):
    assert right_part["verdict"] == "pass" and right_part["p_value"] > 0.01
    settings = right_part["settings"]
    assert {setting["draft_tokens"] for setting in settings} == {1, 2, 3, 8}
    assert any(setting["top_k"] for setting in settings)
    assert any(setting["top_p"] < 1 for setting in settings)
    assert right_part["draws"] == len(settings) * 8 * 32
    assert right_part["tokens"] > right_part["draft_tokens"] + 1
    assert 0.2 < right_part["detectable_total_variation"] < 0.31
    assert right_part["power"] == 0.99
    assert 0.3 < right_part["draft_total_variation"] < 0.7
    tests = right_part["tests"]
    assert [test["degrees"] for test in tests if test["test"] == "joint"] == [31] * len(settings)
    cut = [test["statistic"] for test in tests if test["test"] == "words that are cut"]
    assert cut == [0, 0, 0]
    assert len(tests) == len({tuple(map(str, test.values())) for test in tests}) == 30


@pytest.fixture
def plain(monkeypatch):
    """The settings without top-k and top-p alone: two of five, in two fifths of the time."""
    monkeypatch.setattr(sampling, "SETTINGS", sampling.SETTINGS[:2])


@pytest.fixture
def few(monkeypatch):
    """One setting without top-k and top-p, and one with them."""
    monkeypatch.setattr(sampling, "SETTINGS", sampling.SETTINGS[1:3])


def test_sampling_is_repeatable(plain):
    assert certified(table_decoders()) == certified(table_decoders())


@pytest.mark.parametrize(
    ("seed", "mutant"), LOSSY, ids=lambda value: getattr(value, "__name__", "")
)
def test_sampling_of_a_lossy_engine_is_a_defect(seed, mutant, plain, monkeypatch):
    mutant(monkeypatch)
    assert certified(table_decoders(seed))["verdict"] == "defect"


def test_an_engine_that_cuts_nothing_where_it_should_is_a_defect(monkeypatch):
    monkeypatch.setattr(sampling, "SETTINGS", sampling.SETTINGS[2:3])
    right = decoding_sampling.warped
    monkeypatch.setattr(
        decoding_sampling,
        "warped",
        lambda logits, temperature, *_: right(logits, temperature, 0, 1),
    )
    part = certified(table_decoders())
    (cut,) = [test for test in part["tests"] if test["test"] == "words that are cut"]
    assert part["verdict"] == "defect" and cut["p_value"] < sampling.SIGNIFICANCE


@pytest.mark.parametrize("k", [1, 2, 8])
def test_an_engine_that_is_wrong_at_one_number_of_draft_tokens_is_a_defect(k, monkeypatch):
    right = rejection.accepted_count

    def accepted_count(p, q, tokens, u, valid):
        return valid.sum() if len(tokens) == k else right(p, q, tokens, u, valid)

    monkeypatch.setattr(rejection, "accepted_count", accepted_count)
    monkeypatch.setattr(
        sampling, "SETTINGS", [one for one in sampling.SETTINGS if one.draft_tokens == k]
    )
    assert certified(table_decoders())["verdict"] == "defect"


def test_the_joint_distribution_alone_shows_an_engine_that_keeps_what_the_draft_says(
    plain, monkeypatch
):
    monkeypatch.setattr(rejection, "accepted_count", lambda p, q, tokens, u, valid: valid.sum())
    tests = certified(table_decoders())["tests"]
    joint = [test for test in tests if test["test"] == "joint"]
    assert joint and all(test["p_value"] < sampling.SIGNIFICANCE for test in joint)


def other_vocabulary(method):
    """Tables over a, b, c; "ab" is the target's alone, "ca" and "bc" are the draft's."""
    target_tokenizer = toy(["a", "b", "ab", "c"], [("a", "b")])
    draft_tokenizer = toy(["c", "a", "ca", "b", "bc"], [("c", "a"), ("b", "c")])
    target = ModelWrapper(Table(make_table(4, seed=0)), target_tokenizer, "cpu")
    draft = ModelWrapper(Table(make_table(5, seed=1)), draft_tokenizer, "cpu")
    decoder_of = functools.partial(
        SpeculativeDecoder, draft, target, vocabulary=method, engine="eager"
    )
    return decoder_of, [Encoded([0, 1, 3])]


@pytest.mark.parametrize("method", ["intersection", "exact_match"])
def test_sampling_with_a_draft_of_another_vocabulary_passes(method, few):
    part = certified(*other_vocabulary(method), 20)
    assert part["verdict"] == "pass"
    assert (part["draft_total_variation"] is None) == (method == "exact_match")


def test_scores_permuted_against_their_tokens_are_a_defect_in_another_vocabulary(few, monkeypatch):
    right = IntersectionDrafting.propose

    def propose(self, k):
        proposal = right(self, k)
        return proposal._replace(q=proposal.q.roll(1, dims=1))

    monkeypatch.setattr(IntersectionDrafting, "propose", propose)
    assert certified(*other_vocabulary("intersection"), 20)["verdict"] == "defect"


@pytest.fixture(scope="module")
def pair():
    return ModelPair("tiny", ModelSide("draft", "float32"), ModelSide("target", "float32"))


def test_greedy_output_of_a_right_engine_passes(pair, tiny_pair):
    part = check_greedy(LoadedPair(pair, "cpu", *tiny_pair), PROMPTS[:2], "eager")
    assert part["verdict"] == "pass"
    assert part["prompts"] == part["agreeing"] == 2 and not part["divergences"]
    assert set(part["agreeing_by_draft_tokens"]) == {"1", "2", "4", "8"}
    assert all(0 < moved < 1e-3 for moved in part["largest_logit_difference"].values())


def test_greedy_output_that_keeps_what_the_draft_says_is_a_defect(pair, tiny_pair, monkeypatch):
    right = Greedy.verify

    def verify(self, logits, tokens, *rest):
        return right(self, logits, tokens, *rest) if len(tokens) != 2 else (len(tokens), tokens[-1])

    monkeypatch.setattr(
        Greedy, "verify", lambda *arguments: tuple(map(torch.as_tensor, verify(*arguments)))
    )
    part = check_greedy(LoadedPair(pair, "cpu", *tiny_pair), PROMPTS[:1], "eager")
    assert part["verdict"] == "defect"
    assert part["agreeing_by_draft_tokens"] == {"1": 1, "2": 0, "4": 1, "8": 1}
    for parting in part["divergences"]:
        target, other = parting["logits"]
        assert parting["verdict"] == DEFECT and parting["gap"] == target - other > 0
        assert parting["draft_tokens"] == 2 and parting["tokens"][0] != parting["tokens"][1]


def test_greedy_output_that_ends_early_is_a_defect(pair, tiny_pair, monkeypatch):
    right = SpeculativeDecoder.generate

    def generate(self, *arguments, **settings):
        result = right(self, *arguments, **settings)
        del result.generated_ids[5:]
        return result

    monkeypatch.setattr(SpeculativeDecoder, "generate", generate)
    part = check_greedy(LoadedPair(pair, "cpu", *tiny_pair), PROMPTS[:1], "eager")
    assert part["verdict"] == "defect" and part["agreeing"] == 0
    assert {(d["position"], d["tokens"][1], d["gap"]) for d in part["divergences"]} == {
        (5, None, None)
    }


def test_equal_logits_are_a_near_tie_whichever_token_is_taken(pair, tiny_tokenizer, monkeypatch):
    """Two tokens that the target can't tell apart, of which speculation takes the other one."""
    model = make_model(vocab_size=len(tiny_tokenizer))
    with torch.no_grad():
        model.lm_head.weight[1::2] = model.lm_head.weight[::2][: len(tiny_tokenizer) // 2]
    target, draft = wrap(model, tiny_tokenizer), wrap(perturbed(model), tiny_tokenizer)
    right = Greedy.verify

    def verify(self, logits, *rest):
        return right(self, logits.flip(-1), logits.shape[-1] - 1 - rest[0], *rest[1:])

    def flipped(self, logits, *rest):
        count, token = verify(self, logits, *rest)
        return count, logits.shape[-1] - 1 - token

    monkeypatch.setattr(Greedy, "verify", flipped)
    part = check_greedy(LoadedPair(pair, "cpu", draft, target), PROMPTS[:1], "eager")
    assert part["agreeing"] == 0 and part["verdict"] == "pass"
    assert all(d["verdict"] == NEAR_TIE and d["gap"] == 0 for d in part["divergences"])


def compiled_with(monkeypatch, change):
    """Compiled passes whose logits `[n, V]` after `length` tokens are `change(logits, length)`."""

    def compile_ahead(module, *_):
        def call(tokens, length, buffers):
            logits, _ = module(tokens, length, buffers)
            logits = change(logits, length)
            return logits, likeliest(logits[-1:])

        return call if isinstance(module, ModelPass) else module

    monkeypatch.setattr(fast_model, "compile_ahead", compile_ahead)


@pytest.fixture
def nearly_tied(tiny_tokenizer):
    """A pair whose target gives each odd token a hair more than the even one before it."""
    model = make_model(vocab_size=len(tiny_tokenizer))
    twins = len(tiny_tokenizer) // 2
    with torch.no_grad():
        head = model.lm_head.weight
        head[1 : 2 * twins : 2] = head[: 2 * twins : 2] * (1 + 1e-4)
    return wrap(perturbed(model), tiny_tokenizer), wrap(model, tiny_tokenizer)


def test_what_moves_a_logit_is_measured_by_the_passes_that_decode(
    pair, nearly_tied, uncompiled, monkeypatch
):
    """Compiled ones that round further than eager ones do: their near ties are no defect."""

    def rounded(logits, length):
        return logits.bfloat16().float()

    compiled_with(monkeypatch, rounded)
    part = check_greedy(LoadedPair(pair, "cpu", *nearly_tied), PROMPTS[:1], "compiled")
    assert part["divergences"] and part["verdict"] == "pass"
    assert all(parting["verdict"] == NEAR_TIE for parting in part["divergences"])
    assert not part["beyond_rounding"]


def test_passes_that_give_other_numbers_excuse_nothing(pair, tiny_pair, uncompiled, monkeypatch):
    """Right where the engine tries them, behind few tokens, and wrong further on."""

    def wrong(logits, length):
        return logits.flip(-1) if length > 40 else logits

    compiled_with(monkeypatch, wrong)
    part = check_greedy(LoadedPair(pair, "cpu", *tiny_pair), PROMPTS[:1], "compiled")
    assert part["verdict"] == "defect" and part["beyond_rounding"]
    assert "more than rounding does" in page._greedy(part, {"source": "builtin"})


def test_a_gap_is_a_near_tie_only_within_what_rounding_moves():
    parting = Parting("code_000", 4, 3, (1, 2), ("a", "b"), (5.0, 4.5), 0.5)
    assert greedy._judge(parting, moved=0.25) == NEAR_TIE
    assert greedy._judge(parting, moved=0.2) == DEFECT


def test_the_rule_passes_and_a_broken_one_is_a_defect(monkeypatch):
    assert check_rule()["verdict"] == "pass"
    monkeypatch.setattr(rejection, "next_distribution", lambda p, q, count: p[count])
    broken = check_rule()
    assert broken["verdict"] == "defect" and broken["worst_error"] > 1e-3


def test_a_rule_that_decides_wrongly_is_a_defect_without_a_number(monkeypatch):
    monkeypatch.setattr(rejection, "accepted_count", lambda p, q, tokens, u, valid: valid.sum())
    assert check_rule() | {"verdict": "defect", "worst_error": None} == check_rule()


@pytest.fixture
def folder(tmp_path, tiny_pair, tiny_tokenizer, few, monkeypatch):
    """A folder with a registered pair of tiny models and a file of prompts; sampling cut short."""
    for name, wrapper in zip(("draft", "target"), tiny_pair, strict=True):
        wrapper.model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
    sides = {side: {"model": side, "dtype": "float32"} for side in ("draft", "target")}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"tiny": sides}))
    (tmp_path / "mine.jsonl").write_text(json.dumps({"text": PROMPTS[0].text}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(at_once, "available_cores", lambda: 1)  # its lines are ours to read
    monkeypatch.setattr(certificate, "draw", functools.partial(draw, generations=20))
    monkeypatch.setattr(certificate, "SETTINGS", sampling.SETTINGS)
    return tmp_path


def certify(monkeypatch, *arguments):
    engine = [] if "--engine" in arguments else ["--engine", "eager"]
    argv = ["specdec", "certify", "--registry", "own.yaml", "--pair", "tiny", *engine, *arguments]
    monkeypatch.setattr(sys, "argv", argv)
    command.main()


def test_the_command_writes_a_certificate_and_a_page(folder, monkeypatch, capsys):
    certify(monkeypatch, "--prompts", "mine.jsonl")
    written = json.loads((folder / "results/certificates/tiny_eager.json").read_text())
    assert set(written) == {"pair", "verdict", "greedy", "sampling", "rule", "provenance"}
    assert {written[part]["verdict"] for part in ("greedy", "sampling", "rule")} == {"pass"}
    provenance = written["provenance"]
    assert provenance["pair_entry"]["draft"]["model"] == "draft"
    assert provenance["drafter"] == "DraftModel" and "same" in provenance["vocabulary_match"]
    assert provenance["ignored_settings"] == []
    assert provenance["engine_requested"] == "eager" and provenance["environment"]["torch"]
    assert len(provenance["code_digest"]) == 16 and provenance["prompts"]["source"] == "mine.jsonl"
    shown = (folder / "results/certificates/tiny_eager.md").read_text()
    assert shown.startswith("# Certificate of tiny: pass\n")
    assert f"Engine: {provenance['engine']} (asked for: eager)" in shown
    said = capsys.readouterr()
    assert shown in said.out
    last = "tiny: pass: its output is its target's (results/certificates/tiny_eager.md)"
    assert said.out.splitlines()[-1] == last
    for step in ("prompt 1 of 1", "sampled output: K = 3", "preparing K = 8"):
        assert step in said.err
    for line in (
        "## Greedy output: pass",
        "1 of 1 prompts",
        "## Sampled output: pass",
        "rule: pass",
    ):
        assert line in shown


def test_the_command_fails_on_a_defect_and_says_where_to_look(folder, monkeypatch):
    monkeypatch.setattr(rejection, "accepted_count", lambda p, q, tokens, u, valid: valid.sum())
    with pytest.raises(SpecdecError, match=r"tiny: defect \(sampling, rule\).*tiny_eager\.md"):
        certify(monkeypatch, "--prompts", "mine.jsonl")
    written = json.loads((folder / "results/certificates/tiny_eager.json").read_text())
    assert written["verdict"] == "defect"
    assert "**DEFECT**" in (folder / "results/certificates/tiny_eager.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompts", "none.jsonl"], "^--prompts: none.jsonl can't be read .No such file"),
        (["--prompts", "mine.jsonl", "--field", "prompt"], "prompt"),
        (["--pair", "tinny"], "there is no pair 'tinny'"),
        (["--threads", "0"], "--threads: 0 is below 1"),
    ],
)
def test_a_wrong_argument_is_one_line(folder, monkeypatch, arguments, says):
    with pytest.raises(SpecdecError, match=says):
        certify(monkeypatch, *arguments)
    assert not (folder / "results").exists()


def test_prompts_are_built_in_ones_by_default(tiny_tokenizer):
    prompts, described = load_prompts(None, "text", [Limit("tiny", tiny_tokenizer)])
    assert [prompt.domain for prompt in prompts[::4]] == ["code", "conversation", "summarization"]
    assert len(prompts) == 12 and described["source"] == "builtin"
    assert described["domains"] == ["code", "conversation", "summarization"]


def test_a_short_context_leaves_out_the_domains_that_do_not_fit_and_says_which(tiny_tokenizer):
    prompts, described = load_prompts(None, "text", [Limit("tiny", tiny_tokenizer, 80)])
    assert {prompt.domain for prompt in prompts} == {"conversation"} == set(described["domains"])
    assert set(described["left_out"]) == {"code", "summarization"}
    assert "longer than 80 tokens of tiny" in described["left_out"]["code"]
    with pytest.raises(SpecdecError, match="give short ones with --prompts"):
        load_prompts(None, "text", [Limit("tiny", tiny_tokenizer, 3)])


def test_a_text_that_comes_twice_in_a_file_is_examined_once(tmp_path, tiny_tokenizer):
    (tmp_path / "mine.json").write_text(json.dumps(["same", "other", "same"]))
    prompts, described = load_prompts(tmp_path / "mine.json", "text", [Limit("t", tiny_tokenizer)])
    assert [prompt.text for prompt in prompts] == ["same", "other"]
    assert described["passed_over"] == 1


def test_what_a_certificate_does_not_speak_of_is_said():
    provenance = {
        "prompts": {"left_out": {"code": "code: 4 prompts wanted, 0 of 50 from builtin fit"}},
        "ignored_settings": ["repetition_penalty 1.1", "top_p 0.9"],
    }
    left_out, ignored = page._exceptions(provenance)
    assert left_out == "Left out, code: 4 prompts wanted, 0 of 50 from builtin fit."
    assert "generation config also asks for repetition_penalty 1.1, top_p 0.9: none" in ignored
    assert page._exceptions({"prompts": {}, "ignored_settings": []}) == []


def test_a_prompt_file_of_the_study_is_read_and_what_does_not_fit_is_passed_over(
    tmp_path, tiny_tokenizer
):
    long = Prompt("code_003", "code", "x = 1\n" * 100, 300)
    dataset = PromptDataset([*PROMPTS, long], {"digest": digest([*PROMPTS, long])})
    dataset.save(tmp_path / "prompts.json")
    limit = Limit("tiny", tiny_tokenizer, 60)
    prompts, described = load_prompts(tmp_path / "prompts.json", "text", [limit])
    assert prompts == PROMPTS and described["passed_over"] == 1
    with pytest.raises(SpecdecError, match="no prompt is within 2 tokens of tiny"):
        load_prompts(tmp_path / "prompts.json", "text", [Limit("tiny", tiny_tokenizer, 2)])


@pytest.mark.parametrize("cores", [1, 2])
def test_on_two_cores_its_parts_are_examined_at_once(cores, folder, monkeypatch):
    begun = multiprocessing.Event()  # both have work: none takes all of it

    def counted(*arguments):
        begun.set()
        return draw(*arguments, generations=20)

    def checked(*arguments):
        assert cores == 1 or begun.wait(60)
        return {"by": os.getpid(), **check_greedy(*arguments)}

    monkeypatch.setattr(at_once, "available_cores", lambda: cores)
    monkeypatch.setattr(certificate, "check_greedy", checked)
    monkeypatch.setattr(certificate, "draw", counted)
    certify(monkeypatch, "--prompts", "mine.jsonl")
    written = json.loads((folder / "results/certificates/tiny_eager.json").read_text())
    assert (written["greedy"]["agreeing"], written["verdict"]) == (1, "pass")
    assert written["greedy"]["by"] == os.getpid() or cores == 2


@pytest.mark.parametrize("with_copy", [False, True], ids=["alone", "with a copy"])
def test_works_done_at_once_give_what_they_give_in_their_order(with_copy):
    works = [functools.partial(int, str(number)) for number in range(50)]
    assert do_all(works, with_copy) == list(range(50))


def test_what_a_work_raises_or_ends_with_is_said_by_whoever_waits():
    ours = os.getpid()

    def only_in_a_copy(fail):
        while os.getpid() == ours and not failing.is_set():
            failing.wait(0.1)  # the copy takes the next
        if os.getpid() != ours:
            failing.set()
            fail()

    for fail, said in (
        (lambda: get_pair("none"), "no pair 'none'"),
        (lambda: os._exit(3), "ended without an outcome .exit code 3"),
    ):
        failing = multiprocessing.Event()
        with pytest.raises(SpecdecError, match=said):
            do_all([functools.partial(only_in_a_copy, fail)] * 2, with_copy=True)
    with pytest.raises(SpecdecError, match="no pair 'none'"):
        do_all([lambda: get_pair("none")] * 2, with_copy=False)


@pytest.mark.slow
def test_the_workflow_examines_each_pair_where_asked_and_only_then(tmp_path):
    study = make_project(tmp_path / "study")
    assert "certify" not in study.jobs()
    study.edit("study.yaml", "pairs:", "threads: 2\npairs:")
    code, output = study.run("-n", "-p", "certificates")
    assert code == 0, output
    assert "--threads 2" in output  # as the study decodes
    assert re.search(r"^certify +1$", output, re.MULTILINE) and "decode" not in output
