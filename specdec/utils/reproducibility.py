"""What makes a run repeatable, and what says where it ran: seeds, threads, environment, code.

What needs no torch lives in `digest` and `files`, so that a workflow that only asks for a digest
starts at once; it can be imported from here too.
"""

import os
import platform
import random
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specdec import __version__
from specdec.utils.digest import code_digest
from specdec.utils.files import atomic_write, exclusive_lock
from specdec.utils.machine import check_threads
from specdec.utils.paths import PROJECT_ROOT

__all__ = [
    "atomic_write",
    "capture_environment",
    "code_digest",
    "deterministic_flags",
    "exclusive_lock",
    "set_seed",
    "set_threads",
]


def set_seed(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def deterministic_flags(enabled: bool = True) -> None:
    """Make torch take deterministic kernels and full float32 (no TF32), or its defaults again.

    An operation that has no deterministic kernel warns. On a GPU, call it before the first matrix
    product: cuBLAS reads its workspace setting once.
    """
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(enabled, warn_only=True)
    torch.backends.cudnn.deterministic = enabled
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = not enabled


def set_threads(count: int) -> None:
    """Let torch compute on `count` threads of the processor."""
    check_threads(count)
    torch.set_num_threads(count)


def capture_environment(device: torch.device | str) -> dict[str, Any]:
    """Where a run takes place, as plain values for a record; what cannot be told is None.

    `memory_gb` is that of the device in GB (2^30 bytes), `tf32` whether float32 matrix products on
    a GPU may round to TF32, `git_dirty` whether tracked files differ from the revision.
    """
    device = torch.device(device)
    revision, dirty = _git_state()
    on_gpu = device.type == "cuda"
    return {
        "git_revision": revision,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "specdec": __version__,
        "bitsandbytes": _version("bitsandbytes"),
        "cuda": torch.version.cuda,
        "driver": _driver_version() if on_gpu else None,
        "device": torch.cuda.get_device_name(device) if on_gpu else processor_name(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "memory_gb": round(_memory_bytes(device) / 2**30, 1),
        "tf32": torch.get_float32_matmul_precision() != "highest",
    }


@cache
def _git_state() -> tuple[str | None, bool | None]:
    """Revision of the checkout and whether it was changed; (None, None) outside of one."""
    # Without this test, git would answer for a repository that the project merely lies in.
    if not (PROJECT_ROOT / ".git").exists():
        return None, None
    described = _output(
        ["git", "-C", str(PROJECT_ROOT)]
        + ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    )
    if described is None:
        return None, None
    return described.removesuffix("-dirty"), described.endswith("-dirty")


@cache
def _driver_version() -> str | None:
    versions = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return versions.splitlines()[0] if versions else None


@cache
def processor_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output(command: list[str]) -> str | None:
    """What a command prints, or None where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
