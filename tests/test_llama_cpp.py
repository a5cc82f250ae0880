"""llama.cpp beside us: it runs our export of the very weights, and its times are read rightly."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from specdec import __main__ as command
from specdec.benchmark import run
from specdec.benchmark.arms import AMOUNTS, BenchPrompt, Request, decoder_arm
from specdec.benchmark.llama_cpp_arm import LlamaCpp, amounts
from specdec.benchmark.settings import Settings
from specdec.decoding.loaded_pair import Encoded, LoadedPair, load_pair
from specdec.utils.errors import SpecdecError
from tests.test_bench import PAIR, SMALL, small_copies  # noqa: F401 (a fixture that is always on)
from tests.tiny import make_model, perturbed, wrap

needs_peers = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("xllamacpp", "gguf")),
    reason="needs the extra 'peers'",
)
needs_int4 = pytest.mark.skipif(
    not importlib.util.find_spec("bitsandbytes"), reason="needs the extra 'gpu'"
)

REQUEST = Request(max_new_tokens=24, temperature=0.0, top_k=0, top_p=1.0, seed=1)
PROMPT = BenchPrompt("one", Encoded([5, 9, 11, 200, 3]))


def made(kind: str, dtype=torch.float32) -> LoadedPair:
    target = make_model(kind, dtype=dtype)
    return LoadedPair(PAIR, "cpu", wrap(perturbed(target)), wrap(target))


def ours(pair: LoadedPair) -> list[int]:
    return decoder_arm(0, pair.decoder(0, "eager"), REQUEST).generate(PROMPT).ids


@needs_peers
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_what_it_emits_of_our_export_is_what_we_emit(kind):
    pair = made(kind)
    peer = LlamaCpp(pair, REQUEST, threads=1, context=64)
    arms = [peer.alone(), peer.ngram(), peer.drafted(3)]
    assert [arm.name for arm in arms] == ["llama.cpp", "llama.cpp, n-gram", "llama.cpp, K = 3"]
    runs = [arm.generate(PROMPT) for arm in arms]
    assert [run.ids for run in runs] == [ours(pair)] * 3
    assert runs[0].amounts["rounds"] == runs[0].amounts["steps"] == 23
    drafted = runs[2].amounts
    assert 0 < drafted["accepted"] <= drafted["proposed"]
    assert drafted["rounds"] + drafted["accepted"] == drafted["steps"] == 23


@needs_peers
def test_what_a_run_has_seen_does_not_help_the_next():
    peer = LlamaCpp(made("llama"), REQUEST, threads=1, context=64)
    for arm in (peer.ngram(), peer.drafted(2)):
        first, second = (arm.generate(PROMPT).amounts for _ in range(2))
        for name in ("accepted", "proposed", "tokens"):
            assert first[name] == second[name]


@needs_peers
def test_matrices_keep_their_dtype_and_the_rest_is_float32(tmp_path):
    import gguf

    from specdec.benchmark.gguf_export import export

    wrapper = wrap(make_model("llama", dtype=torch.bfloat16))
    export(wrapper, tmp_path / "model.gguf")
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert tensors["blk.0.attn_q.weight"].tensor_type.name == "BF16"
    assert tensors["output_norm.weight"].tensor_type.name == "F32"
    assert ("output.weight" in tensors) == (not wrapper.model.config.tie_word_embeddings)
    written = gguf.quants.dequantize(
        tensors["blk.0.ffn_up.weight"].data, gguf.GGMLQuantizationType.BF16
    )
    own = wrapper.model.model.layers[0].mlp.up_proj.weight.float()
    assert torch.equal(torch.from_numpy(written), own)


@needs_peers
@needs_int4
def test_a_4_bit_draft_is_exported_in_the_4_bits_of_llama_cpp():
    """Whichever way round its layers are stored: most of what it proposes is right. Its numbers are
    the target's rounded once: rounded to one grid and then to the other, few proposals were."""
    import gguf

    pair = load_pair("micro_int4", device="cpu")
    request = Request(48, 0.0, 0, 1.0, 1)
    prompt = BenchPrompt("code", pair.encode("def add(a, b):\n    return"))
    peer = LlamaCpp(pair, request, threads=1, context=256)
    drafted = peer.drafted(2).generate(prompt)
    written = {t.name: t.data for t in gguf.GGUFReader(peer._exported["draft"]).tensors}
    own = pair.target.model.transformer.h[0].mlp.c_fc.weight.T.float().contiguous().numpy()
    once = gguf.quants.quantize(own, gguf.GGMLQuantizationType.Q4_0)
    assert (written["blk.0.ffn_up.weight"] == once).all()
    assert drafted.ids == decoder_arm(0, pair.decoder(0, "eager"), request).generate(prompt).ids
    assert drafted.amounts["accepted"] > 0.7 * drafted.amounts["proposed"]


@needs_peers
def test_what_cannot_be_exported_is_one_line(tmp_path):
    from specdec.benchmark.gguf_export import export

    with pytest.raises(SpecdecError, match="a gpt_neox model isn't exported to GGUF; gpt2, llama"):
        export(wrap(make_model("neox")), tmp_path / "model.gguf")


def test_its_times_begin_at_the_first_token():
    timings = {"prompt_ms": 500.0, "predicted_ms": 2000.0, "predicted_n": 21}
    alone = amounts(timings)
    assert set(alone) == set(AMOUNTS)
    assert (alone["steps"], alone["decode_s"], alone["total_s"]) == (20, 2.0, 2.5)
    assert (alone["rounds"], alone["accepted"], alone["proposed"]) == (20, 0, 0)
    drafted = amounts(timings | {"draft_n": 30, "draft_n_accepted": 12})
    assert (drafted["rounds"], drafted["accepted"], drafted["proposed"]) == (8, 12, 30)


@needs_peers
def test_a_benchmark_holds_both_peers(tiny_pair):
    settings = Settings(**vars(SMALL) | {"against": ("transformers", "llama.cpp")})
    shown: list[str] = []
    document = run.compare(LoadedPair(PAIR, "cpu", *tiny_pair), settings, shown.append)
    arms = {row["arm"]: row for row in document["rows"]}
    assert {"llama.cpp", "llama.cpp, n-gram", "llama.cpp, K = 2", "llama.cpp, K = 3"} <= set(arms)
    for peer in ("transformers", "llama_cpp"):
        found = document[f"against_{peer}"]
        assert found["K"] == [2, 3] and found["geometric_mean"]["value"] > 0
        assert found["best_to_best"]["theirs"] in arms
    assert not any(document["differences"].values())
    text = "\n".join(shown)
    assert "÷ those of llama.cpp with the same draft, geometric mean over K = 2, 3: " in text
    assert "÷ that of llama.cpp ('llama.cpp" in text


def test_without_the_extra_one_line_names_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else find(name)
    )
    words = "specdec bench --pair micro --against llama.cpp".split()
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SpecdecError, match="llama.cpp needs xllamacpp, of the extra 'peers'"):
        command.main()
