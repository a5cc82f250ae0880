"""Matrix products of half precision computed in float32, where nothing hangs on how they round.

Many processors have no such products, and then they take many times as long.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

HALF = (torch.float16, torch.bfloat16)
PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten.linear.default,
}


class ProductsInFloat32(TorchDispatchMode):
    """Within it, a product of half-precision tensors of the host is that of float32, rounded.

    Each weight is widened for its product and forgotten: for a few passes, not for decoding.
    """

    def __init__(self) -> None:
        super().__init__()
        # Numbers in float32, by the place among the arguments: new memory takes ten times as long.
        self._room: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation not in PRODUCTS or not _is_half(args[0]):
            return operation(*args, **kwargs)
        wide = [self._widen(i, a) if _is_half(a) else a for i, a in enumerate(args)]
        return operation(*wide, **kwargs).to(args[0].dtype)

    def _widen(self, place: int, value: torch.Tensor) -> torch.Tensor:
        if place not in self._room or self._room[place].numel() < value.numel():
            self._room[place] = torch.empty(value.numel())
        strides = torch.empty_like(value, device="meta").stride()  # its own where they are dense
        return self._room[place].as_strided(value.shape, strides).copy_(value)


def _is_half(value: object) -> bool:
    return torch.is_tensor(value) and value.device.type == "cpu" and value.dtype in HALF
