"""The fast form of a model: its pass compiled once, for any number of tokens, and its caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from threading import RLock

import torch

from specdec.engine.compiler import compile_ahead, is_copy
from specdec.engine.gpu_operators import compile_for_gpu, gpu_operators
from specdec.engine.pieces import END_TOKENS, STATE_SIZE, Decision, DraftChoice, ModelPass
from specdec.engine.segments import dim_from_zero
from specdec.kernels.build import load_operators
from specdec.kernels.formats import lay_out_weights
from specdec.kernels.graft import graft
from specdec.method.sampling import Sampling, make_noise, widened
from specdec.models.cache import SLOTS_STEP, FixedCache, GrowingCache
from specdec.models.loading.memory_check import available_bytes
from specdec.models.wrapper import ModelWrapper, Read, Session
from specdec.utils.cache import cache_folder
from specdec.utils.errors import SpecdecError, is_out_of_memory

RECOMPILE_LIMIT = 64  # variants of one piece on a GPU; PyTorch's own, 8, ends a job
ROUNDING = 0.1  # of the largest logit: more than any dtype's, less than any mistake's
ROWS = 3  # of an example: any number above 1 stands for all

_one_at_a_time = RLock()  # compiling lends a model other layers for a while


def fast_model(wrapper: ModelWrapper, as_draft: bool = False) -> FastModel:
    """The fast form of this model: there is one, or, of a 4-bit model on a CPU, one that rounds
    where it is a draft and one that doesn't where it is a target."""
    rounds = as_draft and draft_rounds(wrapper.is_4bit, wrapper.device)
    with _one_at_a_time:
        if rounds not in wrapper.fast:
            wrapper.fast[rounds] = FastModel(wrapper, rounds)
        return wrapper.fast[rounds]


def draft_rounds(is_4bit: bool, device: torch.device) -> bool:
    """Whether such a draft, compiled, rounds its activations (`specdec.kernels.formats.forms`)."""
    return is_4bit and device.type == "cpu"


class FastModel:
    """What of a model is compiled. Each piece is tried on a real pass before it counts.

    One that `rounds` is a draft's: see `specdec.kernels.formats.forms`.
    """

    def __init__(self, wrapper: ModelWrapper, rounds: bool) -> None:
        self.wrapper, self.rounds = wrapper, rounds
        self._pieces: dict[tuple, Callable | Exception] = {}
        self._free: list[FixedCache] = []
        self._example: tuple[torch.Tensor, GrowingCache] | None = None

    @cached_property
    def pool(self) -> tuple[int, int]:
        """Memory that all graphs with this model share: no two of them run at once."""
        return torch.cuda.graph_pool_handle()

    @property
    def run(self) -> Callable:
        """The compiled `ModelPass`."""
        return self.tapped_at(())

    def tapped_at(self, taps: tuple[int, ...]) -> Callable:
        """The compiled `ModelPass` that also gives the hidden states at `taps`."""
        return self._piece(("pass", taps), lambda: self._compile_pass(taps))

    @property
    def rows_apart(self) -> bool:
        """Whether a token's logits depend on no token read beside it, bit for bit."""
        return getattr(self.run, "rows_apart", False)

    def decide(self, sampling: Sampling) -> Callable:
        """The compiled `Decision` about this model's logits."""
        return self._piece(("decide", sampling), lambda: self._compile_decision(sampling))

    def choose(self, sampling: Sampling, target_size: int) -> Callable | None:
        """The compiled `DraftChoice` from this model's logits, before a target of `target_size`.

        None where the pass has chosen already.
        """
        if sampling.kind.draft_is_likeliest and self.wrapper.vocab_size <= target_size:
            return None
        address = ("choose", sampling, target_size)
        return self._piece(address, lambda: self._compile_choice(sampling, target_size))

    def read_prompt(
        self, tokens: torch.Tensor, keep: int, taps: tuple[int, ...] = ()
    ) -> tuple[Read, GrowingCache]:
        """Read the first tokens `[n]` of a text, operation by operation, with our products.

        What the last `keep` of them gave, and the cache. A draft that rounds does so here too.
        """
        session = Session(self.wrapper)
        if not self._on_cpu:
            return session.read(tokens, keep, taps), session.cache
        load_operators(cache_folder())
        with self.wrapper.lock, graft(self.wrapper.model, self.rounds):
            return session.read(tokens, keep, taps), session.cache

    def take_cache(self, slots: int) -> FixedCache:
        """A cache of at least `slots` places that nobody else has; `give_back` it in the end."""
        with _one_at_a_time:
            for cache in self._free:
                if cache.slots >= slots:
                    self._free.remove(cache)
                    return cache
            self._free.clear()  # all too short: texts have grown
            return FixedCache(self._sample[1], slots)

    def give_back(self, cache: FixedCache) -> None:
        self._free.append(cache)

    def _piece(self, address: tuple, compile: Callable[[], Callable]) -> Callable:
        piece = self._pieces.get(address)
        if piece is None:
            with _one_at_a_time, self.wrapper.lock, torch.no_grad():
                piece = self._pieces.get(address) or _or_error(compile)
                self._pieces[address] = piece
        if isinstance(piece, Exception):
            raise piece
        return piece

    @property
    def _sample(self) -> tuple[torch.Tensor, GrowingCache]:
        """Logits `[1, V]` and cache of a pass over one token: their shapes and dtypes."""
        if self._example is None:
            if self.wrapper.device.type == "cpu":
                lay_out_weights(self.wrapper.model, available_bytes(self.wrapper.device))
            logits, cache = self.wrapper.forward(torch.zeros(1, 1, dtype=torch.long))
            self._example = logits[0, :, : self.wrapper.vocab_size], cache
        return self._example

    def _compile_pass(self, taps: tuple[int, ...]) -> Callable:
        wrapper = self.wrapper

        def arguments(rows: int) -> tuple:
            # Of a text as there may be one: where there is none, rounding can change everything.
            cache = FixedCache(self._sample[1], rows * SLOTS_STEP)
            cache.fill(self._sample[1])
            tokens = (torch.arange(rows, device=wrapper.device) + 1) % wrapper.vocab_size
            return tokens, self._number(1), cache.first(cache.slots)

        buffers = 2 * len(self._sample[1])
        sizes = {0: dim_from_zero("rows")}, None, [{0: dim_from_zero("slots")}] * buffers
        config = wrapper.model.config.to_dict()
        config.pop("_name_or_path", None)  # where the model lies changes no code
        identity = {"model": config, "vocabulary": wrapper.vocab_size, "rounds": self.rounds}
        if taps:
            identity["taps"] = taps
        module = ModelPass(wrapper.model, wrapper.vocab_size, taps)
        layers = partial(gpu_operators, wrapper.model)
        if self._on_cpu:
            layers = partial(graft, wrapper.model, self.rounds, to_trace=True)
        label = f"a pass of {wrapper.name}{' in 4 bits' if wrapper.is_4bit else ''}"
        return self._compile(module, arguments, sizes, identity, (1, ROWS), label, layers)

    def _compile_decision(self, sampling: Sampling) -> Callable:
        def arguments(k: int) -> tuple:
            logits, q = self._rows(k + 1), self._number(0)
            if sampling.kind.asks_for_q:
                q = widened(logits[:k]).softmax(-1)
            block = torch.arange(k + 1, device=self.wrapper.device) % self.wrapper.vocab_size
            state, ends = self._number(0).repeat(STATE_SIZE), self._number(-1).repeat(END_TOKENS)
            limits = torch.cat([self._number(SLOTS_STEP).view(1), ends])
            return logits, block, q, state, limits, *self._chance(sampling)

        k = dim_from_zero("k")
        q_rows = {0: k} if sampling.kind.asks_for_q else None
        sizes = {0: k + 1}, {0: k + 1}, q_rows, None, None, _places(sampling), None
        identity = {"sampling": _name(sampling)}
        label = f"decisions ({_name(sampling)})"
        return self._compile(Decision(sampling), arguments, sizes, identity, (0, 1, ROWS), label)

    def _compile_choice(self, sampling: Sampling, target_size: int) -> Callable:
        def arguments(rows: int) -> tuple:
            return self._rows(rows), self._number(0), *self._chance(sampling)

        module = DraftChoice(sampling, self.wrapper.vocab_size, target_size)
        sizes = {0: dim_from_zero("rows")}, None, _places(sampling), None
        identity = {"sampling": _name(sampling), "target": target_size}
        label = f"a draft's choice ({_name(sampling)})"
        return self._compile(module, arguments, sizes, identity, (1, 2), label)

    def _compile(
        self,
        module: torch.nn.Module,
        arguments: Callable[[int], tuple],
        sizes: tuple,
        identity: dict,
        tries: tuple[int, ...],
        label: str,
        layers: Callable[[], AbstractContextManager] = nullcontext,
    ) -> Callable:
        """A module compiled for `arguments(n)` of any n, with other `layers`, and tried with a few.

        Raises:
            Exception: what the compiler says, or SpecdecError where its outcome is another.
        """
        if self._on_cpu:
            with layers():
                compiled = compile_ahead(module, arguments(ROWS), sizes, identity, label)
            if is_copy():
                return compiled  # whoever is to use it tries it
        else:
            limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
            torch._dynamo.config.recompile_limit = limit
            compiled = compile_for_gpu(module)
        for n in tries:  # a compiler may find out only now that it can't
            given = arguments(n)
            if not self._on_cpu:
                _mark_dynamic(given, sizes)
            with layers() if self.rounds else nullcontext():  # its rounding is no mistake
                expected = module(*given)
            # A model's own likeliest token may be a tie; a decision about given logits is none.
            exact = not isinstance(module, ModelPass)
            with layers():  # a GPU's compiler traces only now
                got = compiled(*given)
            if not _alike(got, expected, exact, 2 * ROUNDING if self.rounds else ROUNDING):
                raise SpecdecError(f"the compiled {type(module).__name__} gives other numbers")
        return compiled

    @property
    def _on_cpu(self) -> bool:
        return self.wrapper.device.type == "cpu"

    def _number(self, value: int) -> torch.Tensor:
        return torch.tensor(value, device=self.wrapper.device)

    def _rows(self, count: int) -> torch.Tensor:
        """Some logits `[count, V]`."""
        like = self._sample[0]
        random = torch.randn(count, like.shape[1], generator=torch.Generator().manual_seed(0))
        return random.to(like.device, like.dtype)

    def _chance(self, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise and temperature as a request has them."""
        device = self.wrapper.device
        noise = make_noise(sampling, 0, SLOTS_STEP, device, synthetic_acceptance=0.5)
        return noise, torch.ones((), dtype=torch.float64, device=device)


def _or_error(compile: Callable[[], Callable]) -> Callable | Exception:
    """What a compiler makes, or says: asking again would take as long."""
    try:
        return compile()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return error


def _places(sampling: Sampling) -> dict | None:
    return {0: dim_from_zero("places")} if sampling.kind.has_table else None


def _name(sampling: Sampling) -> str:
    return f"{sampling.kind.__name__}, top-k {sampling.top_k}, top-p {sampling.top_p}"


def _alike(
    ours: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], exact: bool, rounding: float
) -> bool:
    """Whether two outcomes of a piece say the same, but for `rounding` (of the largest number);
    `exact` is about integers."""
    for a, b in zip(ours, expected, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if not a.is_floating_point():
            if exact and not torch.equal(a, b):
                return False
        elif a.numel() and b.isfinite().all():
            if (a - b).abs().amax() > rounding * b.abs().amax():
                return False
    return True


def _mark_dynamic(arguments: tuple, sizes: tuple) -> None:
    """Tell PyTorch's compiler of a GPU which sizes change; it takes 0 and 1 for sizes apart."""
    for given, size in zip(arguments, sizes, strict=True):
        tensors, of_each = (given, size) if isinstance(given, list) else ([given], [size])
        for tensor, dims in zip(tensors, of_each, strict=True):
            if dims and len(tensor) > 1:
                torch._dynamo.mark_dynamic(tensor, 0)
