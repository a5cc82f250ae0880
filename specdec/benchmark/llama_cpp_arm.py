"""What people use on a plain CPU: llama.cpp, alone, with a draft model, and with its n-gram draft.

It runs in this process, through the package xllamacpp, on our own export of the loaded weights, on
as many threads, and is given token ids. Its times are its own: it starts a clock at the first
token. Draft tokens are K in a round (the least probability of a draft token is 0), but for the last
rounds. Its prebuilt wheels use AVX2 at most, whatever the processor has.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from specdec.benchmark.arms import Arm, BenchPrompt, Request, Run
from specdec.benchmark.gguf_export import export
from specdec.decoding.loaded_pair import LoadedPair
from specdec.profiling.memory import MemoryTracker
from specdec.utils.errors import SpecdecError

NGRAM = "llama.cpp, n-gram"


def arm_name(K: int) -> str:
    return f"llama.cpp, K = {K}" if K else "llama.cpp"


class LlamaCpp:
    """Makes the arms of a pair, each a server with its model loaded.

    The exported files lie in a temporary folder, which goes with the last arm.
    """

    def __init__(self, pair: LoadedPair, request: Request, threads: int, context: int) -> None:
        """Export both models, and check what can't be had.

        Args:
            context: tokens that a prompt and its continuation have at most.

        Raises:
            SpecdecError: on a GPU, and as `export`.
        """
        if pair.target.device.type != "cpu":
            raise SpecdecError("--against llama.cpp runs on the CPU; add --device cpu")
        self._pair, self._request = pair, request
        self._threads, self._context = threads, context
        self._folder = tempfile.TemporaryDirectory(prefix="specdec-gguf-")
        self._exported: dict[str, Path] = {}
        self._export("target")

    def alone(self) -> Arm:
        """The target alone."""
        return self._arm(arm_name(0), 0, self._parameters())

    def drafted(self, K: int) -> Arm:
        """The pair's draft in front of it.

        Raises:
            SpecdecError: for a draft of another vocabulary, and as `export`.
        """
        import xllamacpp

        draft, target = self._pair
        if draft.logit_size != target.logit_size:
            raise SpecdecError("its drafts need the target's vocabulary")
        parameters = self._parameters()
        parameters.speculative.types = [
            xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE
        ]
        drafting = parameters.speculative.draft
        drafting.mparams.path = str(self._export("draft"))
        drafting.n_max, drafting.n_min, drafting.p_min = K, 0, 0.0
        drafting.cpuparams.n_threads = drafting.cpuparams_batch.n_threads = self._threads
        drafting.cache_type_k = drafting.cache_type_v = parameters.cache_type_k
        return self._arm(arm_name(K), K, parameters)

    def ngram(self) -> Arm:
        """Proposals looked up in the text so far, as many as it likes."""
        import xllamacpp

        parameters = self._parameters()
        parameters.speculative.types = [
            xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_CACHE
        ]
        return self._arm(NGRAM, 0, parameters)

    def _export(self, side: str) -> Path:
        if side not in self._exported:
            path, entry = Path(self._folder.name, f"{side}.gguf"), self._pair.entry
            of_itself = side == "draft" and entry.draft_model_id == entry.target_model_id
            export(getattr(self._pair, side), path, self._pair.target if of_itself else None)
            self._exported[side] = path
        return self._exported[side]

    def _parameters(self):
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(self._exported["target"])
        parameters.n_ctx, parameters.n_parallel = self._context, 1
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = self._threads
        parameters.fit_params = parameters.cache_prompt = False
        parameters.cache_ram_mib = parameters.n_ctx_checkpoints = parameters.verbosity = 0
        if self._pair.target.model.dtype.itemsize == 4:  # in float32 throughout, as we compute
            cache = xllamacpp.ggml_type.GGML_TYPE_F32
            parameters.cache_type_k = parameters.cache_type_v = cache
            # Its fused attention rounds to 16 bits: logits are then 1e-2 off, without it 1e-5.
            off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            parameters.flash_attn_type = off
        return parameters

    def _arm(self, name: str, K: int, parameters) -> Arm:
        import xllamacpp

        server = xllamacpp.Server(parameters)
        target = self._pair.target

        def generate(prompt: BenchPrompt) -> Run:
            memory = MemoryTracker(target.device)
            with memory.phase("whole"):
                answer = server.handle_completions(
                    {
                        "prompt": prompt.ids,
                        "n_predict": self._request.max_new_tokens,
                        "temperature": 0,
                        "ignore_eos": True,
                        "cache_prompt": False,
                    }
                )
            if "choices" not in answer:
                raise SpecdecError(f"llama.cpp refused a prompt: {answer}")
            ids = [int(i) for i in re.findall(r"t(\d+)", answer["choices"][0]["text"])]
            return Run(ids, amounts(answer["timings"]), memory.peak_mb)

        return Arm(name, K, generate)


def amounts(timings: dict) -> dict[str, float]:
    """AMOUNTS of a run, from what the server says of it."""
    tokens, accepted = timings["predicted_n"], timings.get("draft_n_accepted", 0)
    steps, decode_s = tokens - 1, timings["predicted_ms"] / 1e3
    rounds = steps - accepted
    return {
        "tokens": tokens,
        "total_s": timings["prompt_ms"] / 1e3 + decode_s,
        "steps": steps,
        "decode_s": decode_s,
        "rounds": rounds,
        "full_rounds": rounds,
        "full_rounds_s": decode_s,
        "accepted": accepted,
        "proposed": timings.get("draft_n", 0),
        "draft_ms": float("nan"),
        "verify_ms": float("nan"),
    }
