"""What a GPU does while it works: clocks, power, temperature, and the energy that it took.

Read by NVIDIA's own library (nvidia-ml-py, extra `gpu`) in a thread of its own, which waits
between readings and holds nothing up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from statistics import median
from types import ModuleType
from typing import Any

import torch

from specdec.utils.logging import get_logger

log = get_logger(__name__)

INTERVAL = 0.05  # s between readings; drivers renew power every 20 to 100 ms

Reading = Callable[[ModuleType, Any], float]

#: Sampled, the median counts: MHz, W, °C.
SAMPLED: dict[str, Reading] = {
    "clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "memory_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
    "power_w": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
    "temperature_c": lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(
        gpu, nvml.NVML_TEMPERATURE_GPU
    ),
}
#: Limits that the above are to be seen against, read once.
LIMITS: dict[str, Reading] = {
    "most_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "most_power_w": lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3,
}
#: A counter; what it grows by is the energy of the block, in J.
ENERGY: Reading = lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3  # noqa: E731


class PowerSampler:
    """`with PowerSampler(device) as power: ...`, then `power.figures`.

    Energy is that of the whole card, whoever else uses it. What a card does not tell is left out;
    of a processor, or without nvidia-ml-py, there is nothing.
    """

    def __init__(self, device: torch.device, interval: float = INTERVAL) -> None:
        self._gpu = _handle(device)
        self._interval = interval
        self._stop = threading.Event()
        self._samples: dict[str, list[float]] = {}
        self._energy: float | None = None

    def __enter__(self) -> PowerSampler:
        if self._gpu is not None:
            self._samples = {name: [] for name in SAMPLED}
            self._energy_before = self._read(ENERGY)
            self._stop.clear()
            self._thread = threading.Thread(target=self._sample_until_stopped, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._gpu is None:
            return
        after = self._read(ENERGY)
        self._stop.set()
        self._thread.join()
        if after is not None and self._energy_before is not None:
            self._energy = after - self._energy_before

    @property
    def figures(self) -> dict[str, float] | None:
        """Medians of `SAMPLED`, `LIMITS`, and `energy_j`; None where nothing is told."""
        if self._gpu is None:
            return None
        figures = {name: median(values) for name, values in self._samples.items() if values}
        figures |= {name: self._read(reading) for name, reading in LIMITS.items()}
        figures["energy_j"] = self._energy
        return {name: value for name, value in figures.items() if value is not None} or None

    def _sample_until_stopped(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stop.wait(self._interval)
            for name, values in self._samples.items():
                # After the end only what a block shorter than the interval still lacks.
                if not stopped or not values:
                    value = self._read(SAMPLED[name])
                    if value is not None:
                        values.append(value)

    def _read(self, reading: Reading) -> float | None:
        nvml, gpu = self._gpu
        try:
            return reading(nvml, gpu)
        except nvml.NVMLError:  # this card, or this driver, does not tell
            return None


def _handle(device: torch.device) -> tuple[ModuleType, Any] | None:
    """The library and what it calls the GPU."""
    nvml = _library() if device.type == "cuda" else None
    if nvml is None:
        return None
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        return nvml, nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError as error:
        log.info("clocks and power are not recorded: %s", error)
        return None


@cache
def _library() -> ModuleType | None:
    """nvidia-ml-py, ready for use, or None; said once."""
    try:
        import pynvml
    except ImportError:
        log.info("clocks and power are not recorded: nvidia-ml-py is not installed (extra 'gpu')")
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.info("clocks and power are not recorded: %s", error)
        return None
    return pynvml
