"""Matrix products of half precision computed in float32, where nothing hangs on how they round.

Many processors have no such products: there a pass of GPT-2 XL in float16 takes 20 s a token.
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

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation not in PRODUCTS or not _is_half(args[0]):
            return operation(*args, **kwargs)
        wide = [value.float() if _is_half(value) else value for value in args]
        return operation(*wide, **kwargs).to(args[0].dtype)


def _is_half(value: object) -> bool:
    return torch.is_tensor(value) and value.device.type == "cpu" and value.dtype in HALF
