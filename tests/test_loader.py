"""Loading a model: dtypes, devices, int4, and one line for whatever is missing."""

import importlib.util
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import httpx
import pytest
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file

from specdec.models.loading import hub, loader
from specdec.models.loading.form import check_form
from specdec.models.loading.hub import check_available, resolve_model
from specdec.models.loading.loader import load_model, resolve_device
from specdec.models.wrapper import ModelWrapper
from specdec.utils.errors import SpecdecError, cli
from specdec.utils.paths import PROJECT_ROOT
from tests.tiny import make_model, make_tokenizer

needs_bitsandbytes = pytest.mark.skipif(
    not (importlib.util.find_spec("bitsandbytes") and importlib.util.find_spec("accelerate")),
    reason="needs the extra `gpu` (bitsandbytes, accelerate)",
)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory):
    """A Llama-shaped model and its tokenizer in a folder, as on the hub."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = make_tokenizer()
    make_model("llama", len(tokenizer), hidden_size=64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def quantised(saved_model):
    return load_model(str(saved_model), "int4", device="cpu")[0]


class TestLoad:
    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    def test_weights_have_the_dtype_asked_for(self, saved_model, dtype):
        model, tokenizer = load_model(str(saved_model), dtype, device="cpu")
        assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}
        assert tokenizer.decode(tokenizer.encode("def add(a, b):")) == "def add(a, b):"

    def test_weights_are_those_that_were_saved(self, saved_model):
        model, tokenizer = load_model(str(saved_model), "float32", device="cpu")
        original = make_model("llama", len(tokenizer), hidden_size=64)
        ids = torch.tensor([[1, 2, 3]])
        torch.testing.assert_close(model(ids).logits, original(ids).logits)

    def test_a_model_is_ready_for_inference(self, saved_model):
        model, _ = load_model(str(saved_model), "float32", device="cpu")
        assert not model.training
        assert not any(weight.requires_grad for weight in model.parameters())

    def test_it_is_called_what_it_was_asked_for_not_where_it_lies(self, saved_model, monkeypatch):
        monkeypatch.chdir(saved_model.parent)
        model, tokenizer = load_model(saved_model.name, "float32", device="cpu")
        assert ModelWrapper(model, tokenizer, "cpu").name == saved_model.name
        assert tokenizer.name_or_path == saved_model.name

    @pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
    def test_onto_a_gpu_they_go_without_being_whole_on_the_host(
        self, saved_model, monkeypatch, dtype
    ):
        asked, gpu = {}, torch.device("cuda:0")

        class Model(torch.nn.Module):
            config = SimpleNamespace()

            def to(self, device):
                pytest.fail("the whole model was moved")

        def from_pretrained(source, **options):
            asked.update(options)
            return Model(), {"missing_keys": (), "mismatched_keys": (), "unexpected_keys": ()}

        monkeypatch.setattr(loader, "resolve_device", lambda _: gpu)
        monkeypatch.setattr(loader.AutoModelForCausalLM, "from_pretrained", from_pretrained)
        load_model(str(saved_model), dtype, "cuda:0")
        assert asked["device_map"] == {"": gpu}
        assert asked["dtype"] == getattr(torch, dtype)

    def test_loading_onto_a_gpu_without_accelerate_says_what_to_install(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(SpecdecError, match=r"loading onto cuda:0 needs accelerate; .*\[gpu\]"):
            check_form("tiny", "bfloat16", torch.device("cuda:0"))

    def test_an_unknown_dtype_is_refused(self, saved_model):
        with pytest.raises(SpecdecError, match="dtype 'fp16' is not one of float32, float16"):
            load_model(str(saved_model), "fp16")

    def test_a_broken_folder_is_one_line_that_names_it(self, saved_model, tmp_path):
        (tmp_path / "config.json").write_text((saved_model / "config.json").read_text())
        with pytest.raises(SpecdecError, match="cannot be loaded: ") as caught:
            load_model(str(tmp_path), "float32")
        assert "\n" not in str(caught.value)

    def test_code_that_comes_with_a_model_does_not_run_unasked(self, tmp_path):
        make_tokenizer().save_pretrained(tmp_path)
        code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": code}))
        (tmp_path / "own.py").write_text("raise SystemExit('this ran')")
        with pytest.raises(SpecdecError, match="trust_remote_code: true"):
            load_model(str(tmp_path), "float32")


@needs_bitsandbytes
class TestInt4:
    def test_it_is_nf4_with_double_quantisation_computing_in_float32_on_a_cpu(self, quantised):
        layer = quantised.model.layers[0].self_attn.q_proj
        assert layer.weight.quant_type == "nf4"
        assert layer.weight.compress_statistics
        assert layer.compute_dtype == torch.float32

    def test_embeddings_and_head_are_not_quantised(self, quantised):
        assert quantised.lm_head.weight.dtype == torch.float32
        assert quantised.model.embed_tokens.weight.dtype == torch.float32

    def test_it_computes_about_the_same_as_the_weights_it_stands_for(self, saved_model, quantised):
        full, _ = load_model(str(saved_model), "float32", device="cpu")
        ids = torch.tensor([[1, 2, 3, 4]])
        exact, rough = full(ids).logits.flatten(), quantised(ids).logits.flatten()
        assert torch.corrcoef(torch.stack([exact, rough]))[0, 1] > 0.9
        assert quantised.get_memory_footprint() < full.get_memory_footprint()

    def test_a_parameter_counts_once_however_it_is_stored(self, saved_model, quantised):
        full, _ = load_model(str(saved_model), "float32", device="cpu")
        assert quantised.num_parameters() == full.num_parameters()


@pytest.mark.parametrize("missing", ["bitsandbytes", "accelerate"])
def test_int4_without_its_libraries_says_what_to_install(saved_model, monkeypatch, missing):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name)
    )
    with pytest.raises(SpecdecError, match=rf"int4 needs .*{missing}.*pip install"):
        load_model(str(saved_model), "int4", device="cpu")


class TestDevice:
    def test_auto_is_whatever_there_is(self):
        expected = "cuda" if torch.cuda.is_available() else "cpu"
        assert resolve_device("auto").type == expected

    @no_gpu
    @pytest.mark.parametrize("device", ["cuda", "cuda:1"])
    def test_a_gpu_that_is_not_there_is_refused(self, saved_model, device):
        with pytest.raises(SpecdecError, match=f"device '{device}' was asked for.*sees 0 GPUs"):
            load_model(str(saved_model), "float32", device=device)

    def test_what_is_no_device_is_refused(self):
        with pytest.raises(SpecdecError, match="device 'gpu0' is none; take auto, cpu"):
            resolve_device("gpu0")


class TestResolve:
    def test_a_folder_is_looked_up_here_first(self, saved_model, monkeypatch):
        monkeypatch.chdir(saved_model.parent)
        assert resolve_model("tiny-llama") == str(saved_model)
        assert resolve_model("./tiny-llama") == str(saved_model)

    def test_then_in_the_project(self, saved_model, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(hub, "SHIPPED", saved_model.parent)
        assert resolve_model("tiny-llama") == str(saved_model)

    @pytest.mark.parametrize("name", ["gpt2", "meta-llama/Meta-Llama-3-8B-Instruct"])
    def test_a_hub_id_stays_what_it_is(self, name):
        assert resolve_model(name) == name

    @pytest.mark.parametrize("name", ["./draft", "/no/draft", "~/no/draft", "a/b/draft"])
    def test_a_missing_folder_is_named(self, name):
        with pytest.raises(SpecdecError, match=f"{name}: there is no such folder"):
            resolve_model(name)

    def test_a_folder_that_is_no_model_is_named(self, tmp_path):
        with pytest.raises(SpecdecError, match="is no model .it has no config.json."):
            resolve_model(str(tmp_path))


def answer(status: int) -> dict:
    """What the hub's errors carry: a response."""
    request = httpx.Request("HEAD", "https://huggingface.co/owner/name/resolve/main/config.json")
    return {"response": httpx.Response(status, request=request)}


class TestAvailable:
    def test_a_local_model_needs_no_hub(self, saved_model, monkeypatch):
        monkeypatch.setattr(hub, "get_hf_file_metadata", lambda *_, **__: pytest.fail("asked"))
        check_available(str(saved_model))

    @pytest.fixture
    def hub_raises(self, monkeypatch):
        def install(error):
            def ask(*_args, **_settings):
                if error is not None:
                    raise error

            monkeypatch.setattr(hub, "get_hf_file_metadata", ask)

        return install

    def test_a_model_on_the_hub_is_available(self, hub_raises):
        hub_raises(None)
        check_available("owner/name")

    @pytest.mark.parametrize(
        "error, says",
        [
            (
                GatedRepoError("403 Forbidden", **answer(403)),
                "gated; accept the conditions at https://huggingface.co/owner/name, "
                "then run `hf auth login`",
            ),
            (RepositoryNotFoundError("404", **answer(404)), "no such model on the hub"),
            (RevisionNotFoundError("404", **answer(404)), "no revision 'v9'"),
            (EntryNotFoundError("404"), "holds no config.json"),
            (HfHubHTTPError("503 Unavailable", **answer(503)), "cannot be reached .HfHubHTTPErr"),
            (ConnectionError("Name or service\nnot known"), "cannot be reached .ConnectionError"),
            (TimeoutError(), "cannot be reached .TimeoutError"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_what_is_in_the_way_is_one_line_with_the_remedy(self, hub_raises, error, says):
        hub_raises(error)
        with pytest.raises(SpecdecError, match=f"^owner/name: .*{says}") as caught:
            check_available("owner/name", revision="v9")
        assert "\n" not in str(caught.value)

    def test_a_machine_told_to_stay_offline_says_so(self, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(SpecdecError, match="not in the hub's cache, and HF_HUB_OFFLINE"):
            check_available("owner/name-that-nobody-has")

    def test_what_can_be_no_name_is_refused(self):
        with pytest.raises(SpecdecError, match="neither a local folder nor the name of a model"):
            check_available("two words")

    def test_nothing_is_loaded_of_a_model_that_is_not_available(self, hub_raises, monkeypatch):
        hub_raises(GatedRepoError("403", **answer(403)))
        monkeypatch.setattr(
            loader.AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("loaded")
        )
        with pytest.raises(SpecdecError, match="gated"):
            load_model("owner/name", "float32")


class TestCommand:
    def test_it_prints_what_the_readme_shows(self, saved_model, capsys):
        loader.main(["--model", str(saved_model), "--dtype", "bfloat16", "--n-tokens", "3"])
        lines = capsys.readouterr().out.splitlines()
        assert lines[:6] == [
            f"[loader] tokenizer  ← {saved_model}",
            f"[loader] model      ← {saved_model}  (dtype=bfloat16)",
            f"  model      : {saved_model}",
            "  parameters : 0.1 M",
            "  memory     : 0.00 GB",
            "",
        ]
        assert lines[6] == "[loader] generating 3 tokens …"
        assert lines[7].startswith("[loader] output: 'The quick brown fox")
        assert lines[8:] == ["[loader] OK"]

    @pytest.mark.slow  # a process of its own, since bitsandbytes talks when it is first loaded
    @needs_bitsandbytes
    def test_nothing_else_is_printed(self, saved_model):
        command = [sys.executable, "-m", "specdec.models.loader", "--model", str(saved_model)]
        command += ["--dtype", "int4", "--device", "cpu"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("[loader] OK\n")

    def test_a_failure_is_one_line_and_an_exit_code(self, capsys):
        with pytest.raises(SystemExit) as ended:
            cli(lambda: loader.main(["--model", "no/such/folder", "--dtype", "float32"]))
        assert ended.value.code == 2
        printed = capsys.readouterr().err
        assert printed.startswith("error: no/such/folder: there is no such folder")
        assert printed.count("\n") == 1

    def test_no_token_to_generate_is_refused(self, saved_model):
        with pytest.raises(SpecdecError, match="--n-tokens 0 is below 1"):
            loader.main(["--model", str(saved_model), "--n-tokens", "0"])


class TestIncomplete:
    """A checkpoint that doesn't hold its whole model: transformers would draw the rest."""

    @pytest.fixture
    def changed(self, saved_model, tmp_path):
        """A copy of the model with its tensors changed."""

        def write(change, **configuration):
            folder = tmp_path / "changed"
            shutil.copytree(saved_model, folder)
            tensors = load_file(folder / "model.safetensors")
            change(tensors)
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
            settings = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(settings | configuration))
            return str(folder)

        return write

    def test_missing_tensors_are_refused_and_named(self, changed):
        def halve(tensors):
            for name in [name for name in tensors if "layers.1." in name]:
                del tensors[name]

        with pytest.raises(SpecdecError, match=r"lacks 9 tensors.*model\.layers\.1\..* and 5 more"):
            load_model(changed(halve), "float32", "cpu")

    def test_a_head_that_is_tied_to_the_embeddings_is_not_missed(self, changed):
        folder = changed(lambda tensors: tensors.pop("lm_head.weight"), tie_word_embeddings=True)
        model, _ = load_model(folder, "float32", "cpu")
        assert model.lm_head.weight is model.model.embed_tokens.weight

    def test_a_head_that_is_not_tied_is_missed(self, changed):
        folder = changed(lambda tensors: tensors.pop("lm_head.weight"))
        with pytest.raises(SpecdecError, match=r"lacks 1 tensors of the model: lm_head\.weight;"):
            load_model(folder, "float32", "cpu")

    def test_another_size_of_vocabulary_is_said_with_both_shapes(self, changed):
        size = len(make_tokenizer())
        folder = changed(lambda _: None, vocab_size=400)
        with pytest.raises(SpecdecError) as caught:
            load_model(folder, "float32", "cpu")
        message = str(caught.value)
        assert f"lm_head.weight is [{size}, 64] in the file, [400, 64] by config.json" in message
        assert f"model.embed_tokens.weight is [{size}, 64] in the file" in message
        assert "ignore_mismatched_sizes" not in message and "\n" not in message

    def test_a_tensor_that_no_weight_takes_is_said_once(self, changed, caplog):
        folder = changed(lambda tensors: tensors.update({"model.extra.weight": torch.zeros(2)}))
        load_model(folder, "float32", "cpu")
        said = [r.getMessage() for r in caplog.records if "no part of the model" in r.getMessage()]
        assert len(said) == 1 and said[0].endswith("left out: model.extra.weight")

    @needs_bitsandbytes
    def test_int4_is_as_strict(self, changed):
        folder = changed(lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight"))
        with pytest.raises(SpecdecError, match=r"lacks 1 tensors.*layers\.0\.mlp\.up_proj"):
            load_model(folder, "int4", "cpu")
