"""Time of top-p's threshold for one row of probabilities: by our kernel, and by a sort.

python benchmarks/top_p.py
"""

from __future__ import annotations

import statistics
from time import perf_counter

import torch

from specdec.kernels.build import instruction_set, load_operators
from specdec.method.sampling import least_of_mass
from specdec.utils.cache import cache_folder

REPEATS = 30


def median_us(way, probabilities: torch.Tensor) -> float:
    times = []
    for _ in range(REPEATS):
        began = perf_counter()
        way(probabilities, 0.9)
        times.append(perf_counter() - began)
    return statistics.median(times) * 1e6


torch.set_num_threads(1)
load_operators(cache_folder())
print(f"{instruction_set()}, one thread, top-p 0.9, median of {REPEATS}")
for size in (4096, 49152, 128256):
    row = (torch.randn(1, size, generator=torch.manual_seed(0)) * 3).softmax(-1)
    kernel = median_us(torch.ops.specdec.least_of_mass, row)
    print(f"{size:7} tokens: {kernel:6.0f} µs, sorted {median_us(least_of_mass, row):6.0f} µs")
