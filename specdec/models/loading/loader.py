"""Load a causal language model and its tokenizer from a local folder or the Hugging Face hub.

`python -m specdec.models.loader --model gpt2 --dtype float16` loads one, says what it weighs and
generates a few tokens with it.
"""

import argparse
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from specdec.models.loading.hub import check_available, resolve_model
from specdec.models.wrapper import ModelWrapper
from specdec.utils.errors import SpecdecError, cli, is_out_of_memory, one_line
from specdec.utils.logging import get_logger

TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
DTYPES = [*TORCH_DTYPES, "int4"]
SMOKE_PROMPT = "The quick brown fox"

log = get_logger("loader")


def load_model(
    model_id: str,
    dtype: str,
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM, ready for inference (eval mode, no gradients), and its tokenizer.

    Args:
        model_id: hub id, or local folder (relative to the current folder, else to the project).
        dtype: float32, float16, bfloat16, or int4: NF4 with double quantisation by bitsandbytes,
            computing in bfloat16 on a GPU and in float32 on a CPU. Embeddings, output head, norms
            and biases are not quantised: they stay in the compute dtype, and a line says so.
        device: "auto" (the GPU if there is one), "cpu", "cuda" or "cuda:1".
        revision: branch, tag or commit on the hub.
        trust_remote_code: whether Python code that comes with the model may run.

    Raises:
        SpecdecError: for a model that is missing or gated, a hub that cannot be reached, a device
            that is not there, int4 without bitsandbytes.
    """
    if dtype not in DTYPES:
        raise SpecdecError(f"{model_id}: dtype '{dtype}' is not one of {', '.join(DTYPES)}")
    place = resolve_device(device)
    options = weight_options(dtype, place)
    check_available(model_id, revision)

    source = resolve_model(model_id)
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    with quiet(), explained(model_id):
        log.info("tokenizer  ← %s", model_id)
        tokenizer = AutoTokenizer.from_pretrained(source, **hub)
        log.info("model      ← %s  (dtype=%s)", model_id, dtype)
        model = AutoModelForCausalLM.from_pretrained(source, **hub, **options)
    if dtype == "int4":  # its weights are in place already
        keep_quantisation(model)
        log.info(describe_int4(model))
    else:
        model = model.to(place)
    return model.eval().requires_grad_(False), tokenizer


def compute_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """What a model loaded as `dtype` computes in, and holds in whatever is not quantised."""
    if dtype != "int4":
        return TORCH_DTYPES[dtype]
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def resolve_device(device: str) -> torch.device:
    """The device that a setting names; "auto" is the GPU if there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise SpecdecError(f"device '{device}' is none; take auto, cpu, cuda or cuda:N") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise SpecdecError(
            f"device '{device}' was asked for, but torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} GPUs; take --device cpu or auto, or install CUDA torch"
        )
    return place


def weight_options(dtype: str, device: torch.device) -> dict:
    """The arguments of `from_pretrained` that decide in what form the weights are held."""
    if dtype != "int4":
        return {"dtype": TORCH_DTYPES[dtype]}
    missing = [
        name for name in ("bitsandbytes", "accelerate") if not importlib.util.find_spec(name)
    ]
    if missing:
        raise SpecdecError(
            f"int4 needs {' and '.join(missing)}; run `pip install -c requirements/lock.txt "
            "-e '.[gpu]'` in the project's folder"
        )
    compute = compute_dtype(dtype, device)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    return {"dtype": compute, "quantization_config": quantization, "device_map": {"": device}}


def keep_quantisation(model: PreTrainedModel) -> None:
    """Have 4-bit layers compute in the stated dtype on every CPU.

    On one with AVX512-BF16, bitsandbytes would repack a layer at its first pass: its scales lose
    their second quantisation, it computes in bfloat16 whatever was asked for, and a layer whose
    shape does not suit fails.
    """
    for layer in _layers_in_4bit(model):
        layer.support_avx512bf16_for_cpu = False


def describe_int4(model: PreTrainedModel) -> str:
    """One line: how many layers are 4-bit, what they compute in, and which weights are not."""
    layers = _layers_in_4bit(model)
    quantised = {id(layer.weight) for layer in layers}
    kept = [
        f"{name.removesuffix('.weight')} ({_short(weight.dtype)})"
        for name, weight in model.named_parameters(remove_duplicate=False)
        if weight.dim() > 1 and id(weight) not in quantised
    ]
    computing = _short(layers[0].compute_dtype) if layers else "nothing"
    return (
        f"int4: {len(layers)} layers in NF4, double quantisation, computing in {computing}; "
        f"not quantised: {', '.join(kept)}, norms and biases"
    )


def _layers_in_4bit(model: PreTrainedModel) -> list[torch.nn.Module]:
    from bitsandbytes.nn import Linear4bit  # late: only int4 needs the library

    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bars and advice of the libraries out of a command's output."""
    talk = transformers.utils.logging
    verbosity, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    # On a CPU it advises, at its first import, to install a package of faster kernels.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        talk.set_verbosity(verbosity)
        if bars:
            talk.enable_progress_bar()


@contextmanager
def explained(model_id: str) -> Iterator[None]:
    """Turn what `from_pretrained` raises about a model into one line that names the model."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        message = one_line(error)
        if "trust_remote_code" in message:
            message = "it brings Python code; to let it run, set trust_remote_code: true for it"
        raise SpecdecError(f"{model_id}: cannot be loaded: {message}") from error


@torch.inference_mode()
def _generate_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int) -> str:
    """`SMOKE_PROMPT` and up to `count` greedy tokens after it."""
    inputs = tokenizer(SMOKE_PROMPT, return_tensors="pt").to(model.device)
    with quiet():
        ids = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m specdec.models.loader",
        description="Load a model, say what it weighs, and generate a few tokens.",
    )
    parser.add_argument("--model", required=True, help="hub id or local folder")
    parser.add_argument("--dtype", default="float16", choices=DTYPES)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--n-tokens", type=int, default=10, help="tokens to generate")
    arguments = parser.parse_args(argv)
    if arguments.n_tokens < 1:
        raise SpecdecError(f"--n-tokens {arguments.n_tokens} is below 1")

    get_logger("loader", to_stdout=True)
    model, tokenizer = load_model(arguments.model, arguments.dtype, arguments.device)
    wrapper = ModelWrapper(model, tokenizer, model.device)
    print(f"  model      : {arguments.model}")
    print(f"  parameters : {wrapper.param_count / 1e6:.1f} M")
    print(f"  memory     : {wrapper.memory_footprint_mb / 1024:.2f} GB\n")
    log.info("generating %d tokens …", arguments.n_tokens)
    log.info("output: %r", _generate_text(model, tokenizer, arguments.n_tokens))
    log.info("OK")


if __name__ == "__main__":
    cli(main)
