"""Random weights: of the sizes asked for, ready to be timed, and made from local files alone."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from specdec.decoding import loaded_pair
from specdec.decoding.loaded_pair import LoadedPair, load_pair
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.models.loading import memory_check, random_weights
from specdec.models.loading.configuration import SHAPES, known_configuration
from specdec.models.loading.memory_check import check_memory, weight_bytes
from specdec.models.loading.random_weights import load_random_weights
from specdec.models.registry import ModelPair, ModelSide, load_registry, with_random_weights
from specdec.utils.errors import SpecdecError
from tests.checks import transformers_greedy
from tests.test_int4 import needs_bitsandbytes
from tests.test_published_sizes import PUBLISHED, configuration

CPU, META = torch.device("cpu"), torch.device("meta")
LLAMA = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
LLAMA_8B = "meta-llama/Meta-Llama-3-8B-Instruct"
GPT2 = {"model_type": "gpt2", "vocab_size": 512, "n_embd": 64, "n_layer": 2, "n_head": 4}
NEOX = {size: LLAMA[size] for size in LLAMA if size != "num_key_value_heads"}
NEOX["model_type"] = "gpt_neox"
PAIR = """
mine:
  draft: {{dtype: float32, weights: random, shape: {draft}}}
  target: {{dtype: float32, weights: random, shape: {target}}}
"""


def side(shape: dict, dtype: str = "float32", model: str | None = None) -> ModelSide:
    model = model or shape["model_type"]
    return ModelSide(model, dtype, weights="random", shape=shape)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    asked = lambda *_: pytest.fail("the hub was asked")  # noqa: E731
    monkeypatch.setattr("specdec.models.loading.configuration.check_available", asked)


@pytest.fixture
def registry(tmp_path):
    def write(draft: dict, target: dict):
        path = tmp_path / "pairs.yaml"
        path.write_text(PAIR.format(draft=draft, target=target))
        return path

    return write


class TestShipped:
    def test_the_shape_of_every_published_model_ships(self):
        registered = {
            side.model
            for pair in load_registry().values()
            for side in (pair.draft, pair.target)
            if not side.model.startswith(("resources/", "package:"))
        }
        shipped = {p.relative_to(SHAPES).with_suffix("").as_posix() for p in SHAPES.rglob("*.json")}
        assert shipped == registered == set(PUBLISHED)

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_a_shape_has_the_published_sizes(self, name):
        shape = known_configuration(side({}, model=name))
        published = configuration(name)
        assert type(shape) is type(published)
        for size in ("vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads"):
            assert getattr(shape, size) == getattr(published, size), size
        assert weight_bytes(side({}, model=name), CPU) == 4 * sum(
            weight.numel() for weight in _without_weights(published).parameters()
        )

    def test_sizes_of_the_entry_lie_over_the_models(self):
        wide = known_configuration(side({"vocab_size": 128256}, model="gpt2"))
        assert (wide.vocab_size, wide.n_layer) == (128256, 12)


class TestWeights:
    @pytest.mark.parametrize("shape", [LLAMA, GPT2, NEOX], ids=lambda shape: shape["model_type"])
    def test_they_are_spread_norms_are_one_biases_zero_and_the_rotary_table_is_right(self, shape):
        model = load_random_weights(side(shape)).model
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                assert 0 < weight.std() < 0.1, name
            else:
                assert torch.equal(weight, torch.full_like(weight, name.endswith("weight"))), name
        ordinary = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
        for (name, buffer), (_, right) in zip(
            model.named_buffers(), ordinary.named_buffers(), strict=True
        ):
            assert torch.equal(buffer, right), name
        assert not any(weight.requires_grad for weight in model.parameters())
        assert not model.training

    def test_tied_weights_are_one_tensor(self):
        model = load_random_weights(side(LLAMA)).model
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight

    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    def test_they_have_the_dtype_asked_for(self, dtype):
        model = load_random_weights(side(LLAMA, dtype)).model
        assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}

    def test_they_are_drawn_on_the_host_for_whatever_device(self, monkeypatch):
        """A device has a generator of its own: what it draws is other numbers."""

        class Watch(TorchDispatchMode):
            drawn: set = set()

            def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
                out = operation(*args, **(kwargs or {}))
                if torch.Tag.nondeterministic_seeded in operation.tags:
                    self.drawn.add(out.device.type)
                return out

        empty = random_weights.model_without_weights(
            side(LLAMA), known_configuration(side(LLAMA)), META
        )
        monkeypatch.setattr(random_weights, "model_without_weights", lambda *_: empty)
        with Watch() as watch:
            model = random_weights._drawn(side(LLAMA), empty.config, META)
        assert {weight.device.type for weight in model.parameters()} == {"meta"}
        assert watch.drawn == {"cpu"}

    def test_rows_and_layers_differ_beyond_the_block_that_is_drawn(self, monkeypatch):
        monkeypatch.setattr(random_weights, "BLOCK", 1009)
        model = load_random_weights(side(LLAMA)).model
        first, second = (layer.mlp.up_proj.weight for layer in model.model.layers)
        assert not torch.equal(first, second)
        assert len(first.unique(dim=0)) == len(first)
        assert abs(first.std() / model.config.initializer_range - 1) < 0.1

    def test_they_are_the_same_at_every_call_and_disturb_no_other_numbers(self):
        first = load_random_weights(side(LLAMA)).model
        torch.manual_seed(5)
        undisturbed = torch.rand(1)
        torch.manual_seed(5)
        second = load_random_weights(side(LLAMA)).model
        assert torch.equal(torch.rand(1), undisturbed)
        for one, other in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(one, other)

    @needs_bitsandbytes
    @pytest.mark.parametrize("shape", [LLAMA, GPT2], ids=lambda shape: shape["model_type"])
    def test_int4_is_what_the_loader_makes_of_trained_weights(self, shape):
        from bitsandbytes.nn import Linear4bit

        wrapper = load_random_weights(side(shape, "int4"))
        assert wrapper.name == side(shape, "int4").label
        layers = [m for m in wrapper.model.modules() if isinstance(m, Linear4bit)]
        assert len(layers) == {"llama": 14, "gpt2": 8}[shape["model_type"]]
        assert all(layer.weight.quant_type == "nf4" for layer in layers)
        assert len({layer.weight.data_ptr() for layer in layers}) == len(layers)
        logits, _ = wrapper.forward(torch.tensor([[1, 2, 3]]))
        assert logits.isfinite().all() and logits.std() > 0

    @needs_bitsandbytes
    def test_what_an_int4_self_has_not_quantised_is_its_targets_as_of_trained_weights(self):
        draft, target = (side(LLAMA, dtype) for dtype in ("int4", "bfloat16"))
        pair = LoadedPair(ModelPair("self", draft, target), "cpu").load()
        theirs = dict(pair.target.model.named_parameters())
        own = [
            (name, part)
            for name, part in pair.draft.model.named_parameters()
            if getattr(part, "quant_state", None) is None
        ]
        assert len(own) > 3
        assert all(part.data_ptr() == theirs[name].data_ptr() for name, part in own)

    def test_int4_without_its_library_is_said(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(SpecdecError, match="int4 needs bitsandbytes and accelerate"):
            load_random_weights(side(LLAMA, "int4"))


class TestPair:
    def test_two_models_of_one_size_of_vocabulary_decode_from_token_ids(self, registry):
        draft, target = load_pair("mine", registry(GPT2, LLAMA), "cpu")
        assert draft.tokenizer is None and target.tokenizer is None
        prompt = [5, 7, 11]
        result = SpeculativeDecoder(draft, target, 3).generate(prompt, 12, eos_token_id=None)
        assert result.generated_ids == transformers_greedy(target.model, prompt, 12)
        assert target.name.startswith("llama (random weights, ")

    def test_two_sizes_of_vocabulary_are_refused_with_both_and_the_remedy(self, registry):
        path = registry(GPT2 | {"vocab_size": 300}, LLAMA)
        with pytest.raises(SpecdecError, match="300 tokens.* 512, .*shape: {vocab_size: 512}"):
            load_pair("mine", path, "cpu")

    def test_what_does_not_fit_is_refused_before_anything_is_built(self, registry, monkeypatch):
        monkeypatch.setattr(memory_check, "available_bytes", lambda _: 1000)
        monkeypatch.setattr(loaded_pair, "load_side", lambda *_: pytest.fail("built"))
        with pytest.raises(SpecdecError, match="pair mine: needs 0.0 GB"):
            load_pair("mine", registry(GPT2, LLAMA), "cpu")


class TestSizes:
    def test_on_a_gpu_both_memories_count(self, monkeypatch):
        gpu, big = torch.device("cuda:0"), side({"vocab_size": 128_256}, "bfloat16", LLAMA_8B)
        free = {"cuda": 18e9, "cpu": 5e9}
        monkeypatch.setattr(memory_check, "available_bytes", lambda device: free[device.type])
        check_memory("both fit", [big], gpu)
        free["cpu"] = 2e9  # the embedding alone has 1.05 GB, and four tensors are read at a time
        with pytest.raises(SpecdecError, match=r"on its way to cuda:0: needs 4.2 GB .* 2.0 GB"):
            check_memory("big", [big], gpu)
        free.update(cpu=5e9, cuda=10e9)
        with pytest.raises(SpecdecError, match=r"big: needs 17.7 GB of memory, and cuda:0 has 10"):
            check_memory("big", [big], gpu)

    def test_of_a_folder_only_the_configuration_is_read(self, tmp_path):
        AutoConfig.for_model(**GPT2).save_pretrained(tmp_path)
        trained = ModelSide(str(tmp_path), "float32")
        wrapper = load_random_weights(with_random_weights(trained))
        assert wrapper.logit_size == 512

    def test_a_model_in_the_hubs_cache_is_known(self, tmp_path, monkeypatch):
        AutoConfig.for_model(**GPT2).save_pretrained(tmp_path)
        cached = str(tmp_path / "config.json")
        monkeypatch.setattr(
            "specdec.models.loading.configuration.try_to_load_from_cache", lambda *_, **__: cached
        )
        assert known_configuration(side({}, model="owner/name")).vocab_size == 512

    def test_an_unknown_model_is_refused_with_what_to_do(self):
        with pytest.raises(SpecdecError, match="owner/name: its sizes are not known .*gpt2-xl"):
            known_configuration(side({}, model="owner/name"))

    @pytest.mark.parametrize("over", [{}, {"model_type": "llama"}])
    def test_a_size_that_no_such_model_has_is_refused(self, over):
        shape = over | {"hiden_size": 64}
        with pytest.raises(SpecdecError, match="no 'hiden_size'; did you mean 'hidden_size'"):
            known_configuration(side(shape, model="TinyLlama/TinyLlama-1.1B-Chat-v1.0"))

    def test_an_unknown_kind_of_model_is_refused_in_one_line(self):
        with pytest.raises(SpecdecError, match="lama") as caught:
            known_configuration(side({"model_type": "lama"}))
        assert "\n" not in str(caught.value)


def _without_weights(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
