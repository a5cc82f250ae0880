"""Half-precision products computed in float32: for passes whose rounding nothing hangs on."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from specdec.models.loading.random_weights import load_random_weights
from specdec.models.products import PRODUCTS, ProductsInFloat32
from specdec.models.registry import ModelSide
from specdec.planning.measure import reader, time_pass

SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 32}
GPT2 = ModelSide("gpt2", "float16", weights="random", shape={"model_type": "gpt2"} | SIZES)


class Products(TorchDispatchMode):
    """Collects the dtypes of the products that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation in PRODUCTS:
            self.dtypes.add(args[0].dtype)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_product_is_that_of_float32_rounded(dtype, mode):
    x, weight, bias = (torch.randn(shape, dtype=dtype) for shape in ((3, 40), (40, 50), (50,)))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    exact = x.to(wide) @ weight.to(wide)
    with mode(), ProductsInFloat32(), Products() as products:
        found = [x @ weight, torch.bmm(x[None], weight[None])[0]]
        found.append(torch.nn.functional.linear(x, weight.T.contiguous()))
        of_one_row = x @ weight[:1].expand(40, -1)  # whose numbers lie in memory once
        with_bias = torch.addmm(bias, x, weight)
    assert products.dtypes == {dtype}  # what was asked for
    for product in found:
        torch.testing.assert_close(product, exact.to(dtype))
    torch.testing.assert_close(
        of_one_row, (x.to(wide) @ weight[:1].to(wide).expand(40, -1)).to(dtype)
    )
    torch.testing.assert_close(with_bias, (exact + bias.to(wide)).to(dtype))


def test_a_model_is_checked_and_a_context_made_without_products_of_its_dtype():
    with Products() as products:
        wrapper = load_random_weights(GPT2, "cpu")
        session = reader(wrapper, 8, [1], "eager")
    assert products.dtypes == {torch.float32}
    with Products() as products:
        time_pass(wrapper, session, 1)
    assert products.dtypes == {torch.float16}, "what is timed is what would decode"
