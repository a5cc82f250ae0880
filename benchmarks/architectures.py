"""Every causal type of transformers at tiny size, its own draft: which decode here, which refuse.

With draft = target every proposal is accepted (α = 1), and the tokens are those that the model
gives when it reads the whole text again for each of them. Prints the page docs/architectures.md:

    python benchmarks/architectures.py > docs/architectures.md
    python benchmarks/architectures.py --types llama mamba2
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections import Counter

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from specdec.decoding.autoregressive import AutoregressiveDecoder
from specdec.decoding.speculative import SpeculativeDecoder
from specdec.models.loading.library import quiet
from specdec.models.wrapper import ModelWrapper
from specdec.utils.errors import SpecdecError, one_line

K, TOKENS, PROMPT = 4, 26, [5, 9, 2, 7, 3, 11]
SECONDS = 60  # for one type
MOST_PARAMETERS = 150e6
VOCABULARY = 128

#: Sizes by the names that configurations have for them; a configuration takes those that it knows.
SMALL = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "model_dim", "embed_dim"], 64),
    **dict.fromkeys(["intermediate_size", "d_ff", "ffn_dim", "n_inner", "decoder_ffn_dim"], 64),
    **dict.fromkeys(["encoder_ffn_dim", "ffn_hidden_size", "shared_intermediate_size"], 64),
    **dict.fromkeys(["num_hidden_layers", "num_layers", "n_layer", "n_layers"], 2),
    **dict.fromkeys(["decoder_layers", "encoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads"], 4),
    **dict.fromkeys(["decoder_attention_heads", "encoder_attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads", "multi_query_group_num"], 2),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"], 256),
    **dict.fromkeys(["head_dim", "kv_channels", "attention_head_dim", "d_kv"], 16),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts"], 4),
    **dict.fromkeys(["moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"], 2),
    **dict.fromkeys(["n_group", "topk_group", "n_shared_experts", "num_shared_experts"], 1),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 32),
    **dict.fromkeys(["expert_ffn_hidden_size"], 32),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "o_lora_rank"], 16),
    **dict.fromkeys(["qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"], 16),
    **dict.fromkeys(["embedding_size", "vocab_size_per_layer_input"], VOCABULARY),
    "hidden_size_per_layer_input": 16,
    "rotary_dim": 16,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


#: What goes with those sizes in single types.
OWN = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "reformer": {"axial_pos_shape": [16, 16], "axial_pos_embds_dim": [32, 32]},
}
HEAD_SIZES = ("head_dim", "kv_channels", "attention_head_dim", "d_kv")


class Untried(BaseException):  # which no `except Exception` on the way takes for another fault
    """No tiny model of a type could be made."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", nargs="+", default=list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, _too_long)
    rows = []
    for model_type in arguments.types:
        outcome, why = attempt(model_type)
        print(f"{model_type}: {outcome} {why}", file=sys.stderr, flush=True)
        rows.append((model_type, outcome, why))
    print(page(rows))


def attempt(model_type: str) -> tuple[str, str]:
    """What became of a type, and why: "right", "refused", "wrong" or "not tried"."""
    signal.alarm(SECONDS)
    try:
        with quiet():
            model = tiny_model(model_type)
            wrapper = ModelWrapper(model, None, "cpu")
            return compare(wrapper)
    except SpecdecError as error:
        return "refused", str(error).partition(": ")[2]
    except Untried as error:
        return "not tried", str(error)
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {one_line(error)[:120]}"
    finally:
        signal.alarm(0)


def tiny_model(model_type: str) -> torch.nn.Module:
    """A model of a type, with few and small layers of random weights, that can be run.

    Some configurations compute what others state, so the first set of sizes that fits is taken.
    """
    reason = None
    for left_out in ((), HEAD_SIZES, (*HEAD_SIZES, "num_key_value_heads", "initializer_range")):
        try:
            return run_once(tiny_configuration(model_type, left_out))
        except Exception as error:
            reason = reason or f"{type(error).__name__}: {one_line(error)[:120]}"
    raise Untried(reason)


def run_once(config: PreTrainedConfig) -> torch.nn.Module:
    with torch.device("meta"):
        count = AutoModelForCausalLM.from_config(config).num_parameters()
    if count > MOST_PARAMETERS:
        raise ValueError(f"{count / 1e6:.0f} M parameters at the sizes that were set")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    read_anew(model, 1)
    return model


def tiny_configuration(model_type: str, left_out: tuple[str, ...]) -> PreTrainedConfig:
    plain = AutoConfig.for_model(model_type)
    text = plain.get_text_config()
    sizes = own_sizes(plain, left_out) | OWN.get(model_type, {})
    if text is not plain:
        sizes["text_config"] = {"model_type": text.model_type} | own_sizes(text, left_out)
    if getattr(text, "is_decoder", None) is False:
        sizes["is_decoder"] = True
    return AutoConfig.for_model(model_type, **sizes)


def own_sizes(config: PreTrainedConfig, left_out: tuple[str, ...]) -> dict[str, int]:
    """Those of SMALL that a configuration states (what is a property of its class it computes)."""
    stated = config.to_dict().keys() | config.attribute_map.keys()
    return {
        name: size
        for name, size in SMALL.items()
        if name in stated
        and name not in left_out
        and not isinstance(getattr(type(config), name, None), property)
    }


def compare(wrapper: ModelWrapper) -> tuple[str, str]:
    """Decode with the model as its own draft, alone, and by reading everything anew."""
    settings = dict(max_new_tokens=TOKENS, eos_token_id=None)
    alone = AutoregressiveDecoder(wrapper, engine="eager").generate(PROMPT, **settings)
    both = SpeculativeDecoder(wrapper, wrapper, K, engine="eager").generate(PROMPT, **settings)
    if alone.generated_ids != read_anew(wrapper.model):
        return "wrong", "the baseline's tokens are not those of reading everything anew"
    if both.generated_ids != alone.generated_ids:
        return "wrong", "the tokens are not the baseline's"
    if both.acceptance_rate != 1:
        return "wrong", f"α {both.acceptance_rate:.2f}"
    return "right", ""


@torch.no_grad()
def read_anew(model: torch.nn.Module, tokens: int = TOKENS) -> list[int]:
    """Greedy tokens of a model that keeps nothing between its passes."""
    ids = torch.tensor([PROMPT])
    for _ in range(tokens):
        logits = model(ids, use_cache=False).logits[0, -1]
        ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
    return ids[0, len(PROMPT) :].tolist()


def page(rows: list[tuple[str, str, str]]) -> str:
    counts = Counter(outcome for _, outcome, _ in rows)
    listed = ", ".join(f"{counts[key]} {key}" for key in OUTCOMES if counts[key])
    versions = f"transformers {transformers.__version__} and torch {torch.__version__}"
    lines = [
        "# Which architectures decode here",
        "",
        f"Made by `python benchmarks/architectures.py` with {versions}:",
        f"every causal type of transformers ({len(rows)}), at tiny size with random weights, as",
        f"its own draft at K = {K}, greedy, {TOKENS} tokens, with `is_decoder: true` where a type",
        f"has it (without, it isn't causal, and refused). {listed}.",
        "",
        *(f"- *{key}*: {meaning}" for key, meaning in OUTCOMES.items()),
        "",
        "| type | outcome | why |",
        "|---|---|---|",
        *(f"| `{kind}` | {outcome} | {why.replace('|', '/')} |" for kind, outcome, why in rows),
    ]
    return "\n".join(lines)


OUTCOMES = {
    "right": "every proposal accepted, and the tokens are those of reading everything anew.",
    "refused": "one line says why, when the model is wrapped: nothing is decoded.",
    "wrong": "a fault of ours.",
    "not tried": "no tiny model could be made; it is checked like any other when it is loaded.",
}


def _too_long(*_) -> None:
    raise Untried(f"not done after {SECONDS} s")


if __name__ == "__main__":
    main()
