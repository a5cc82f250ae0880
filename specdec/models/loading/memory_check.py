"""Whether models fit into a machine's memory, told from their configurations alone.

Weights go onto a GPU tensor by tensor, so the host holds a few of them at a time.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers.pytorch_utils import Conv1D

from specdec.models.loading.configuration import configuration
from specdec.models.loading.form import compute_dtype
from specdec.models.loading.random_weights import model_without_weights
from specdec.models.registry import ModelSide
from specdec.utils.errors import SpecdecError

# Half a byte a weight; of 64 weights one scale in 8 bits, of 256 scales one in 32.
INT4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)

# What caches, logits and workspace take on top of the weights: a tenth of them.
MARGIN = 1.1

AT_A_TIME = 4  # tensors that transformers reads at a time (`core_model_loading.GLOBAL_WORKERS`)
HOST = torch.device("cpu")


def check_memory(
    name: str, sides: list[ModelSide], device: torch.device, stated_gb: float | None = None
) -> None:
    """Raise SpecdecError unless models fit into the memory that is free now: the device's, and on
    their way to a GPU the host's.

    Args:
        name: what the models are together, for the error.
        sides: the models; nothing of them is read but their configurations.
        device: where they are to be.
        stated_gb: what they need there (10^9 bytes) if that is known; else it is computed.
    """
    needed = needed_bytes(sides, device) if stated_gb is None else stated_gb * 1e9
    _check(name, needed, device, "take a smaller pair, or int4 for a side")
    if device.type != "cpu":
        on_the_way = max(bytes_on_the_way(side, device) for side in sides)
        _check(f"{name}, on its way to {device}", on_the_way, HOST, "or take a smaller pair")


def _check(name: str, needed: float, device: torch.device, remedy: str) -> None:
    available = available_bytes(device)
    if needed > available:
        place = "this machine" if device.type == "cpu" else str(device)
        raise SpecdecError(
            f"{name}: needs {needed / 1e9:.1f} GB of memory, and {place} has "
            f"{available / 1e9:.1f} GB free; free some, {remedy}"
        )


def bytes_on_the_way(side: ModelSide, device: torch.device) -> int:
    """What the host holds of a model's weights at a time while they go onto a GPU.

    A GGUF file is converted once, and then needs more: all its weights.
    """
    model = model_without_weights(side, configuration(side), device)
    width = compute_dtype(side.dtype, device).itemsize
    return AT_A_TIME * width * max(weight.numel() for weight in model.parameters())


def needed_bytes(sides: list[ModelSide], device: torch.device) -> float:
    """What models take on a device together: weights, and the margin on top."""
    return MARGIN * sum(weight_bytes(side, device) for side in sides)


def weight_bytes(side: ModelSide, device: torch.device) -> int:
    """What the weights of a model will take on a device, counted on a model without any."""
    model = model_without_weights(side, configuration(side), device)
    width = compute_dtype(side.dtype, device).itemsize
    total = width * sum(weight.numel() for weight in model.parameters())
    if side.dtype == "int4":
        quantised = sum(
            module.weight.numel()
            for module in model.modules()
            if isinstance(module, torch.nn.Linear | Conv1D)
            and module is not model.get_output_embeddings()
        )
        total -= (width - INT4_BYTES) * quantised
    return round(total)


def available_bytes(device: torch.device) -> int:
    """Memory that is free: of the GPU, or of the host within what its container may use."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([_host_bytes(), *_container_bytes()])


def _host_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # no Linux: all memory, since what is free of it can't be told
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    line = next(line for line in lines if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 2**10  # "MemAvailable:  123456 kB"


def _container_bytes() -> list[int]:
    """What a control group leaves of its limit, if there is one with a limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())  # "max" where there is none
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return []
    return [limit - used]
