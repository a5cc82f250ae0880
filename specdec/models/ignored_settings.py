"""What a checkpoint's generation configuration asks for, and decoding here doesn't do."""

from typing import Any

#: Settings of transformers' `generate` that change which tokens it emits, with the values that
#: change nothing. Temperature, top-k and top-p are settings here too: those of a request count.
NEUTRAL = {
    "do_sample": (False,),
    "num_beams": (1,),
    "temperature": (1.0,),
    "top_k": (0,),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "guidance_scale": (1.0,),
    "diversity_penalty": (0.0,),
    "top_h": (),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "bad_words_ids": ((),),
    "force_words_ids": ((),),
    "constraints": ((),),
    "sequence_bias": ({},),
    "suppress_tokens": ((),),
    "begin_suppress_tokens": ((),),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "stop_strings": ((),),
    "token_healing": (False,),
    "watermarking_config": (),
}

LONGEST = 40  # characters of a value that are shown


def ignored_settings(generation_config: Any) -> list[str]:
    """Each as "name value": what the model's own `generate` would do beyond the request.

    "The target's own output" is then what the model's distribution gives, and not what
    `model.generate()` gives without arguments.
    """
    asked = {name: getattr(generation_config, name, None) for name in NEUTRAL}
    return [
        f"{name} {_shortened(str(value))}"
        for name, value in asked.items()
        if value is not None and _comparable(value) not in NEUTRAL[name]
    ]


def _comparable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
