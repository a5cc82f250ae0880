"""Load a causal language model and its tokenizer from a local folder, a file or the hub.

`python -m specdec.models.loader --model gpt2 --dtype float16` loads one, says what it weighs and
generates a few tokens with it.
"""

import argparse

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from specdec.models.loading.completeness import check_complete
from specdec.models.loading.configuration import source_of
from specdec.models.loading.form import (
    DTYPES,
    check_form,
    compute_dtype,
    describe_int4,
    keep_quantisation,
    resolve_device,
    weight_options,
)
from specdec.models.loading.gguf import stored_form, weights_folder
from specdec.models.loading.hub import local_gguf
from specdec.models.loading.library import explained, quiet
from specdec.models.registry import ModelSide
from specdec.models.wrapper import ModelWrapper
from specdec.utils.errors import SpecdecError, cli
from specdec.utils.logging import get_logger

SMOKE_PROMPT = "The quick brown fox"

log = get_logger("loader")


def load_model(
    model_id: str,
    dtype: str,
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM, ready for inference (eval mode, no gradients), and its tokenizer.

    Args:
        model_id: hub id; local folder or GGUF file (relative to the current folder, else to the
            project); or `package:NAME/FILE`, a GGUF file that a Python package brought.
        dtype: float32, float16, bfloat16, or int4: NF4 with double quantisation by bitsandbytes,
            computing in bfloat16 on a GPU and in float32 on a CPU. Embeddings, output head, norms
            and biases are not quantised: they stay in the compute dtype, and a line says so.
        device: "auto" (the GPU if there is one), "cpu", "cuda" or "cuda:1".
        revision: branch, tag or commit on the hub.
        trust_remote_code: whether Python code that comes with the model may run.
        gguf_file: the file to take of a repository on the hub.

    Raises:
        SpecdecError: for a model that is missing, gated or incomplete, a hub that cannot be
            reached, a device that is not there, int4 without bitsandbytes.
    """
    side = ModelSide(
        model_id, dtype, revision, trust_remote_code=trust_remote_code, gguf_file=gguf_file
    )
    return load_trained(side, device)


def load_trained(
    side: ModelSide, device: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a side with trained weights, as `load_model` gives them."""
    place = resolve_device(device)
    check_form(side.label, side.dtype, place)
    source = source_of(side)
    hub = {"revision": side.revision, "trust_remote_code": side.trust_remote_code}
    options = weight_options(side.dtype, place)
    # Shapes that differ are then reported, with both shapes, and not raised without.
    reported = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with quiet(), explained(side.label):
        log.info("tokenizer  ← %s", side.label)
        tokenizer = AutoTokenizer.from_pretrained(source, **hub)
        log.info("model      ← %s  (dtype=%s)", side.label, side.dtype)
        if file := local_gguf(side.model, side.revision, side.gguf_file):
            source = weights_folder(file, compute_dtype(side.dtype, place))
        model, report = AutoModelForCausalLM.from_pretrained(source, **hub, **options, **reported)
    check_complete(side.label, report)
    # As it was asked for: not where it lies on this machine, or what it was converted to.
    model.config.name_or_path = tokenizer.name_or_path = side.label
    if side.dtype == "int4":
        keep_quantisation(model)
        log.info(describe_int4(model))
    return model.eval().requires_grad_(False), tokenizer


def describe_weights(side: ModelSide, device: str = "auto") -> str | None:
    """What the weights of a GGUF file are once loaded, which the dtype alone doesn't tell; or None.

    "Q4_1 weights widened to bfloat16" take the time of bfloat16 and say what Q4_1 says.
    """
    if side.has_random_weights:
        return None
    file = local_gguf(side.model, side.revision, side.gguf_file)
    if file is None:
        return None
    form, dtype = stored_form(file), compute_dtype(side.dtype, resolve_device(device))
    verb = "read as" if form in ("F32", "F16", "BF16") else "widened to"
    quantised = ", then quantised to NF4" if side.dtype == "int4" else ""
    return f"{form} weights {verb} {str(dtype).removeprefix('torch.')}{quantised}"


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
