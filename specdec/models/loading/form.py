"""In what form a model is held: its dtype, its device, and what 4 bits are."""

from __future__ import annotations

import importlib.util

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from specdec.utils.errors import SpecdecError

TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
DTYPES = [*TORCH_DTYPES, "int4"]


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


def compute_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """What a model loaded as `dtype` computes in, and holds in whatever is not quantised."""
    if dtype != "int4":
        return TORCH_DTYPES[dtype]
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def weight_options(dtype: str, device: torch.device) -> dict:
    """The arguments of `from_pretrained` that decide in what form the weights are held."""
    compute = compute_dtype(dtype, device)
    if dtype != "int4":
        # Onto a GPU tensor by tensor: the host never holds the whole.
        directly = {"device_map": {"": device}} if device.type == "cuda" else {}
        return {"dtype": compute, **directly}
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    return {"dtype": compute, "quantization_config": quantization, "device_map": {"": device}}


def check_form(model_id: str, dtype: str, device: torch.device) -> None:
    """Raise SpecdecError for an unknown dtype, and where libraries that loading needs are missing:
    those of int4, and of loading onto a GPU."""
    if dtype not in DTYPES:
        raise SpecdecError(f"{model_id}: dtype '{dtype}' is not one of {', '.join(DTYPES)}")
    needed = {"int4": ("bitsandbytes", "accelerate")}.get(dtype, ())
    if device.type == "cuda":
        needed = needed or ("accelerate",)
    missing = [name for name in needed if not importlib.util.find_spec(name)]
    if missing:
        what = "int4" if dtype == "int4" else f"loading onto {device}"
        raise SpecdecError(
            f"{what} needs {' and '.join(missing)}; run `pip install -c requirements/lock.txt "
            "-e '.[gpu]'` in the project's folder"
        )


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
