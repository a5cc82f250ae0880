"""How many kernels a compiler makes of a layer on a GPU, counted where it has decided on them."""

from __future__ import annotations

import pytest
from torch._inductor.scheduler import NopKernelSchedulerNode, Scheduler

from tests.lower_for_gpu import lower


def kernels(rows: int, layers: int) -> int:
    """Launches of a pass: each node that the scheduler has left after it fused what it could."""
    scheduler = lower(90, rows, layers, ours=True, stop_at=(Scheduler, "codegen"))
    return sum(not isinstance(node, NopKernelSchedulerNode) for node in scheduler.nodes)


# Norm; q, k, v; rotation and caches; scores; softmax; weighted values; output; norm; gate and up;
# activation; down. Of five tokens queries and attention's output are laid out anew. With
# transformers' own operators there are 19; for fewer than 11 attention would have to be one kernel.
@pytest.mark.parametrize(("rows", "most"), [(1, 11), (5, 13)])
def test_a_layer_takes_few_kernels(rows, most):
    one, two = (kernels(rows, layers) for layers in (1, 2))
    assert two - one <= most
