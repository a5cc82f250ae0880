"""A loaded model as a GGUF file, so that llama.cpp runs the very weights that we run.

Written are what a forward pass needs and a vocabulary of made-up names: prompts and output are
token ids, so no text is ever read or made. Matrices keep the model's dtype; one that was quantised
to 4 bits by bitsandbytes is written as Q4_0, llama.cpp's own 4-bit format. Numbers that were
rounded to one grid and then to another lose much, so where the numbers from before are at hand,
those are rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers.pytorch_utils import Conv1D

from specdec.models.wrapper import ModelWrapper
from specdec.utils.errors import SpecdecError

Weights = dict[str, torch.Tensor]


def export(wrapper: ModelWrapper, path: Path, original: ModelWrapper | None = None) -> None:
    """Write a model to `path`.

    Args:
        original: the same model, not quantised.

    Raises:
        SpecdecError: for an architecture, or a form of rotary positions, that isn't exported.
    """
    import gguf  # late: of the extra `peers`

    config = wrapper.model.config
    if config.model_type not in WRITERS:
        raise SpecdecError(
            f"a {config.model_type} model isn't exported to GGUF; {', '.join(WRITERS)} are"
        )
    weights, formats = _weights(wrapper.model), gguf.GGMLQuantizationType
    matrices = {
        torch.float32: formats.F32,
        torch.float16: formats.F16,
        torch.bfloat16: formats.BF16,
    }[wrapper.model.dtype]
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_vocab_size(wrapper.logit_size)
    _add_vocabulary(writer, wrapper.logit_size)
    quantised = _quantised_names(wrapper.model)
    if original is not None:
        before = _weights(original.model)
        weights |= {name: before[name] for name in quantised}
    for name, source, tensor in WRITERS[config.model_type](writer, config, weights):
        form = formats.F32 if tensor.dim() == 1 else matrices
        if source in quantised:
            form = formats.Q4_0
        data = gguf.quants.quantize(tensor.float().contiguous().numpy(), form)
        writer.add_tensor(name, data, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _llama(writer, config, weights: Weights) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Llama and Qwen2; the former's queries and keys lie in another order in GGUF."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise SpecdecError(f"rotary positions of type {rope['rope_type']} aren't exported to GGUF")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for i in range(config.num_hidden_layers):
        names |= {f"model.layers.{i}.{own}": f"blk.{i}.{part}" for own, part in parts.items()}
    turned = {"q_proj": heads, "k_proj": kv_heads} if config.model_type == "llama" else {}
    for source, tensor in weights.items():
        module, _, kind = source.rpartition(".")
        count = turned.get(module.rpartition(".")[2])
        if count:  # the halves of a head's rotary pairs side by side, as llama.cpp turns them
            tensor = tensor.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
        yield f"{names[module]}.{kind}", source, tensor


def _gpt2(writer, config, weights: Weights) -> Iterator[tuple[str, str, torch.Tensor]]:
    """GPT-2."""
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    names = {
        "transformer.wte": "token_embd",
        "transformer.wpe": "position_embd",
        "transformer.ln_f": "output_norm",
        "lm_head": "output",
    }
    parts = {
        "ln_1": "attn_norm",
        "ln_2": "ffn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    }
    for i in range(config.n_layer):
        names |= {f"transformer.h.{i}.{own}": f"blk.{i}.{part}" for own, part in parts.items()}
    for source, tensor in weights.items():
        module, _, kind = source.rpartition(".")
        yield f"{names[module]}.{kind}", source, tensor


WRITERS = {"gpt2": _gpt2, "llama": _llama, "qwen2": _llama}


def _weights(model: torch.nn.Module) -> Weights:
    """The weights by name, matrices `[outputs, inputs]`, those in 4 bits as what they stand for.

    A tied head is left out: it comes with the embedding.
    """
    turned = {f"{n}.weight" for n, module in model.named_modules() if isinstance(module, Conv1D)}
    found = {}
    for name, weight in model.named_parameters():  # what is shared comes once
        if getattr(weight, "quant_state", None) is not None:
            from bitsandbytes.functional import dequantize_4bit

            weight = dequantize_4bit(weight.data, weight.quant_state)
        weight = weight.detach().cpu()
        found[name] = weight.T if name in turned else weight
    return found


def _quantised_names(model: torch.nn.Module) -> set[str]:
    return {
        name
        for name, weight in model.named_parameters()
        if getattr(weight, "quant_state", None) is not None
    }


def _add_vocabulary(writer, size: int) -> None:
    """A vocabulary of made-up tokens, which both models of a pair share.

    Of the kind of RWKV's: the others have an end token by default, whose logit llama.cpp would
    take away where it is not to stop.
    """
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list([f"t{i}" for i in range(size)])
    writer.add_token_types([1] * size)
    writer.add_add_bos_token(False)
