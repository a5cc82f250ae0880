"""A tiny Llama-shaped model in a GGUF file, as llama.cpp's converter writes one."""

from __future__ import annotations

import json
from pathlib import Path

import torch

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
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


def write_gguf(path: Path, model, tokenizer, kind: str = "F32", without: str = "") -> Path:
    """Write a Llama and its byte-level tokenizer; matrices as `kind`, one tensor left out."""
    import gguf

    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = {token["content"] for token in definition["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in definition["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template or "")
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, weight in state.items():
        name = name.removesuffix(".weight")
        layer = name.split(".")[2] if ".layers." in name else None
        short = NAMES[".".join(name.split(".")[3:]) if layer else name]
        if short in heads:  # the halves of a rotary pair side by side
            rows, columns = weight.shape
            weight = weight.reshape(heads[short], 2, rows // heads[short] // 2, columns)
            weight = weight.transpose(1, 2).reshape(rows, columns)
        stored = f"blk.{layer}.{short}.weight" if layer else f"{short}.weight"
        if stored == without:
            continue
        data, form = weight.float().numpy(), gguf.GGMLQuantizationType.F32
        if weight.dim() == 2:
            form = gguf.GGMLQuantizationType[kind]
            data = gguf.quantize(data, form)
        writer.add_tensor(stored, data, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def dequantised(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """A matrix as it is after it was stored as `kind`."""
    import gguf

    form = gguf.GGMLQuantizationType[kind]
    return torch.from_numpy(gguf.dequantize(gguf.quantize(weight.float().numpy(), form), form))
