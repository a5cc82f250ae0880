"""Arms of other libraries, on the same weights, prompts and threads."""

from __future__ import annotations

import copy

from specdec.benchmark import llama_cpp_arm, transformers_arm
from specdec.benchmark.arms import Arm, BenchPrompt
from specdec.benchmark.llama_cpp_arm import LlamaCpp
from specdec.benchmark.settings import Settings
from specdec.decoding.decoder import Decoder
from specdec.decoding.loaded_pair import LoadedPair
from specdec.models.loading.memory_check import available_bytes
from specdec.models.wrapper import ModelWrapper
from specdec.utils.errors import SpecdecError, one_line
from specdec.utils.extras import require


def check_peers(settings: Settings) -> None:
    """Raise SpecdecError for a peer that can't be had, before anything is loaded."""
    if "llama.cpp" not in settings.against:
        return
    if settings.temperature > 0:
        raise SpecdecError("--against llama.cpp compares greedy output; leave --temperature at 0")
    require("peers", ["xllamacpp", "gguf"], "--against llama.cpp")


def peer_arms(
    pair: LoadedPair,
    decoders: dict[int, Decoder],
    prompts: list[BenchPrompt],
    settings: Settings,
) -> tuple[dict[str, list[Arm]], dict[str, str]]:
    """The arms by peer, and by the name of an arm why it can't be had.

    Called before anything is compiled: a peer is given the weights as they were loaded.
    """
    peers, refused = {}, {}
    if "transformers" in settings.against:
        peers["transformers"], failed = _transformers_arms(pair, decoders, settings)
        refused |= failed
    if "llama.cpp" in settings.against:
        peers["llama.cpp"], failed = _llama_cpp_arms(pair, prompts, settings)
        refused |= failed
    return peers, refused


def _transformers_arms(
    pair: LoadedPair, decoders: dict[int, Decoder], settings: Settings
) -> tuple[list[Arm], dict[str, str]]:
    draft, target = untouched(pair, settings)
    arms, refused = [transformers_arm.generate_arm(target, settings.request)], {}
    for K in settings.k:
        vocabularies = decoders[K].vocabularies
        shared = vocabularies is None or vocabularies.is_shared
        try:
            arms.append(transformers_arm.assisted_arm(draft, target, K, settings.request, shared))
        except SpecdecError as error:
            refused[transformers_arm.arm_name(K)] = one_line(error)
    return arms, refused


def _llama_cpp_arms(
    pair: LoadedPair, prompts: list[BenchPrompt], settings: Settings
) -> tuple[list[Arm], dict[str, str]]:
    longest = max(len(prompt.ids) for prompt in prompts)
    try:
        peer = LlamaCpp(pair, settings.request, settings.threads, longest + settings.reach)
        arms, refused = [peer.alone(), peer.ngram()], {}
    except SpecdecError as error:
        return [], {llama_cpp_arm.arm_name(0): one_line(error)}
    for K in settings.k:
        try:
            arms.append(peer.drafted(K))
        except SpecdecError as error:
            refused[llama_cpp_arm.arm_name(K)] = one_line(error)
    return arms, refused


def untouched(pair: LoadedPair, settings: Settings) -> tuple[ModelWrapper, ModelWrapper]:
    """The models as they were loaded, for a library that is to run them as they are.

    On a CPU our compiled engine lays weights out anew, in place, so the others get copies.

    Raises:
        SpecdecError: where there is no memory for these.
    """
    if pair.target.device.type != "cpu" or settings.engine == "eager":
        return tuple(pair)
    needed = sum(wrapper.memory_footprint_mb * 2**20 for wrapper in pair)
    free = available_bytes(pair.target.device)
    if needed > free:
        raise SpecdecError(
            f"--against transformers needs {needed / 1e9:.1f} GB for its own copy of the weights, "
            f"and {free / 1e9:.1f} GB are free; take a smaller pair, or --engine eager"
        )
    models = copy.deepcopy([wrapper.model for wrapper in pair])  # what they share stays shared
    return tuple(
        ModelWrapper(model, wrapper.tokenizer, wrapper.device)
        for model, wrapper in zip(models, pair, strict=True)
    )
