"""A machine with GPUs that compute nothing, on a CPU build of torch.

`with fake_cuda() as machine:` runs code on tensors of `cuda:0` and `cuda:1` that hold nothing
(FakeTensorMode), with torch.cuda's streams, graphs and events as stand-ins. A tensor of one device
that meets one of another raises. The machine notes what makes the host wait for a device, what is
copied between host and device, and under which current device graphs, streams and events are used.
A read gives 1 (False, 0.5), so a generation without end tokens runs to its budget. It shows nothing
about values, kernels, or time.

Some indexing of torch asks a CUDA build for a guard; it is done by other operations here.
"""

from __future__ import annotations

import contextlib
import copy
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

READS = {
    torch.Tensor.item,
    torch.Tensor.__int__,
    torch.Tensor.__bool__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
    torch.Tensor.numpy,
    torch.Tensor.nonzero,
    torch.nonzero,
    torch.equal,
}
READ_AS = {"__bool__": False, "__float__": 0.5}  # all else is read as 1


@dataclass
class Machine:
    """What happened: each counted by its name and the place in the package that it came from."""

    reads: Counter = field(default_factory=Counter)
    copies: Counter = field(default_factory=Counter)
    #: What graphs, streams and events were used for, with the current device at that moment.
    used: list[tuple[str, int]] = field(default_factory=list)
    current: list[int] = field(default_factory=lambda: [0])
    captures: int = 0
    on_capture: Callable[[], None] = lambda: None

    def forget(self) -> None:
        self.reads.clear()
        self.copies.clear()
        self.used.clear()
        self.captures = 0

    def note(self, what: str) -> None:
        self.used.append((what, self.current[-1]))


@contextlib.contextmanager
def fake_cuda(compile: Callable = lambda module, **_: module) -> Iterator[Machine]:
    """`compile` stands for torch.compile: here it does nothing; it may refuse, or count."""
    machine = Machine()
    replaced = contextlib.ExitStack()
    with replaced, FakeTensorMode(), _Watch(machine):
        for name, stand_in in _stand_ins(machine).items():
            replaced.enter_context(_put(torch.cuda, name, stand_in))
        from_numpy = torch.from_numpy
        read_all = _read_all(machine)
        replaced.enter_context(_put(torch, "compile", _compiler(compile)))
        replaced.enter_context(_put(FakeTensor, "tolist", read_all))
        empty = lambda array: torch.zeros(array.shape, dtype=from_numpy(array).dtype)  # noqa: E731
        replaced.enter_context(_put(torch, "from_numpy", empty))
        yield machine


def on_fake_device(model: torch.nn.Module, device: str = "cuda:0") -> torch.nn.Module:
    """The model with empty weights on the device; made outside of `fake_cuda`, moved inside."""
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                empty = torch.nn.Parameter(_empty_like(weight, device), requires_grad=False)
                if (state := getattr(weight, "quant_state", None)) is not None:  # of 4 bits
                    empty.quant_state = _state_on(state, device)
                module._parameters[name] = empty
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = _empty_like(buffer, device)
    return model


def _empty_like(tensor: torch.Tensor, device: str) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def _state_on(state, device: str):
    """What 4-bit weights are multiplied out by, with empty tensors on the device."""
    moved = copy.copy(state)
    for name, value in vars(state).items():
        if isinstance(value, torch.Tensor):
            setattr(moved, name, _empty_like(value, device))
        elif name == "state2" and value is not None:
            moved.state2 = _state_on(value, device)
    return moved


class _Watch(TorchFunctionMode):
    """Notes reads and copies, and does the indexing that a CPU build cannot."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if function in READS and isinstance(first, torch.Tensor):
            if _on_cuda(first):
                self.machine.reads[f"{function.__name__} {place()}"] += 1
            return READ_AS.get(function.__name__, 1)
        if function is torch.tensor and "cuda" in str(kwargs.get("device")):
            device = kwargs.pop("device")
            host = function(*args, **kwargs)
            self._crosses("cpu", device)
            return torch.empty(host.shape, dtype=host.dtype, device=device)
        if function is torch.Tensor.to:
            given = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, torch.device | str)]
            if given:
                self._crosses(first.device, given[0])
        if _on_cuda(first):
            if function is torch.Tensor.__setitem__:
                self._write(_take(first, args[1]), args[2])
                return None
            if function is torch.Tensor.copy_:
                return self._write(*args[:2])
        return without_guards(function, args, kwargs)

    def _crosses(self, begin, end) -> None:
        if torch.device(begin).type != torch.device(end).type:
            self.machine.copies[f"{begin} to {end} {place()}"] += 1

    def _write(self, into: torch.Tensor, value) -> torch.Tensor:
        if isinstance(value, torch.Tensor):
            value.expand(into.shape)  # raises where it does not fit
            self._crosses(value.device, into.device)
        return into


def without_guards(function, args: tuple, kwargs: dict):
    """The function, by operations that ask no GPU for a guard."""
    first = args[0] if args else None
    if _on_cuda(first):
        if function is torch.Tensor.__getitem__:
            return _take(*args)
        if function is torch.Tensor.copy_:
            return torch.ops.aten.copy_.default(*args)
        if function is torch.Tensor.__invert__:
            return torch.bitwise_not(first)
        if function is torch.Tensor.__iter__:
            return iter(first.unbind(0))
        if function is torch.Tensor.contiguous:
            if first.is_contiguous():
                return first
            return first.clone(memory_format=torch.contiguous_format)
    return function(*args, **kwargs)


def _stand_ins(machine: Machine) -> dict[str, object]:
    class Device:
        def __init__(self, device) -> None:
            self.index = torch.device(device).index if not isinstance(device, int) else device

        def __enter__(self) -> None:
            machine.current.append(self.index or 0)

        def __exit__(self, *_) -> None:
            machine.current.pop()

    class Used:
        """A stream, an event or a graph: whatever is asked of it is noted."""

        def __init__(self, *_, **settings) -> None:
            self.device = settings.get("device")
            machine.note(f"{type(self).__name__} made")

        def __getattr__(self, name: str):
            if name.startswith("__"):
                raise AttributeError(name)

            def call(*_, **__) -> float:
                machine.note(f"{type(self).__name__}.{name}")
                return 0.5

            return call

    class Stream(Used):
        pass

    class Event(Used):
        pass

    class CUDAGraph(Used):
        pass

    @contextlib.contextmanager
    def on_stream(stream) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def graph(captured, *_, **__) -> Iterator[None]:
        machine.note("capture")
        machine.captures += 1
        machine.on_capture()
        yield

    nothing = lambda *_: None  # noqa: E731
    return {
        "device": Device,
        "current_device": lambda: machine.current[-1],
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": CUDAGraph,
        "stream": on_stream,
        "graph": graph,
        "current_stream": lambda device=None: Stream(device=device),
        "graph_pool_handle": lambda: (0, 1),
        "synchronize": nothing,
        "reset_peak_memory_stats": nothing,
        "max_memory_allocated": lambda *_: 0,
        "max_memory_reserved": lambda *_: 0,
    }


def _take(tensor: torch.Tensor, index) -> torch.Tensor:
    """`tensor[index]`, by operations that need no guard."""
    index = index if isinstance(index, tuple) else (index,)
    given = [part for part in index if part is not None and part is not Ellipsis]
    if Ellipsis not in [part for part in index if not isinstance(part, torch.Tensor)]:
        index = (*index, Ellipsis)
    dim = 0
    for part in index:
        if part is Ellipsis:
            dim += tensor.dim() - len(given)
        elif part is None:
            tensor, dim = tensor.unsqueeze(dim), dim + 1
        elif isinstance(part, slice):
            bounds = part.start, part.stop, part.step or 1
            tensor, dim = torch.ops.aten.slice.Tensor(tensor, dim, *bounds), dim + 1
        elif isinstance(part, torch.Tensor) and len(given) == 1:
            return torch.ops.aten.index.Tensor(tensor, [None] * dim + [part])
        elif isinstance(part, int):
            tensor = torch.select(tensor, dim, part)
        else:
            raise NotImplementedError(f"indexing by {index}")
    return tensor


def _read_all(machine: Machine) -> Callable:
    def tolist(tensor: torch.Tensor):
        # Fake tensors are read item by item; for the host it is one wait.
        if _on_cuda(tensor):
            machine.reads[f"tolist {place()}"] += 1
        return _ones(tuple(tensor.shape))

    return tolist


def _compiler(compile: Callable) -> Callable:
    def torch_compile(module=None, **settings):
        if module is None:  # as a decorator with settings
            return lambda function: compile(function, **settings)
        return compile(module, **settings)

    return torch_compile


@contextlib.contextmanager
def _put(owner, name: str, value) -> Iterator[None]:
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def _on_cuda(value) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "cuda"


def _ones(shape: tuple[int, ...]):
    return [_ones(shape[1:]) for _ in range(shape[0])] if shape else 1


def place() -> str:
    """Where in the package this comes from."""
    frames = [frame for frame in traceback.extract_stack() if "/specdec/" in frame.filename]
    return f"{frames[-1].filename.split('/specdec/')[-1]}:{frames[-1].lineno}" if frames else "?"
