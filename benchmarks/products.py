"""How long the products and the attention of a pass take, alone, and how fast memory is read.

A loop over the linear layers of SmolLM2-135M (random weights; 30 layers and the head, 134.5 M
weights) by our kernels: in bfloat16, and as a 4-bit draft reads them (NF4, rounding, its head in 8
bits or not). The shortest of several runs of each, in turns.

    python benchmarks/products.py --rows 1 2 3 5 9
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from bitsandbytes.functional import quantize_4bit

from specdec.engine.compiler import cache_folder
from specdec.kernels.build import instruction_set, load_operators
from specdec.kernels.formats import nf4_scales

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCABULARY = 30, 576, 9, 3, 64, 1536, 49152
LAYER = [  # (out, in)
    (HEADS * HEAD_DIM, WIDTH),
    (KV_HEADS * HEAD_DIM, WIDTH),
    (KV_HEADS * HEAD_DIM, WIDTH),
    (WIDTH, HEADS * HEAD_DIM),
    (INNER, WIDTH),
    (INNER, WIDTH),
    (WIDTH, INNER),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 3, 5, 9])
    parser.add_argument("--context", type=int, nargs="+", default=[128, 2048])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load_operators(cache_folder())
    print(f"{instruction_set()}, {options.threads} thread(s)")

    ops = torch.ops.specdec
    layers = [torch.randn(shape).bfloat16() * 0.02 for _ in range(LAYERS) for shape in LAYER]
    head = torch.randn(VOCABULARY, WIDTH).bfloat16() * 0.02
    scale = head.float().abs().amax(1) / 127
    head8 = (head.float() / scale[:, None]).round().char()
    layers4 = [in_4_bits(weight.float()) for weight in layers]

    bytes16 = 2 * (sum(weight.numel() for weight in layers) + head.numel())
    buffer = torch.ones(2**28, dtype=torch.uint8)
    read = shortest({"read": lambda: ops.read(buffer)}, options.repeats)["read"]
    speed = buffer.nbytes / read
    print(
        f"read        {speed / 1e9:.1f} GB/s; the bfloat16 weights, {bytes16 / 2**20:.0f} MiB, "
        f"{1e3 * bytes16 / speed:.1f} ms"
    )

    print(
        "rows   bfloat16: layers   head    sum  of read   NF4: layers  head as 8 bits   "
        "c, head in bfloat16 · 8 bits"
    )
    for rows in options.rows:
        x = {width: torch.randn(rows, width).bfloat16() for width in (WIDTH, INNER)}

        def each(weights, product, x=x) -> Callable:
            return lambda: [product(x[weight.shape[1]], weight) for weight in weights]

        times = shortest(
            {
                "layers": each(layers, lambda x, w: ops.linear(x, w, None)),
                "head": each([head], lambda x, w: ops.linear(x, w, None)),
                "layers4": lambda x=x: [
                    ops.nf4_rounded_linear(x[width], *parts, None) for width, parts in layers4
                ],
                "head8": each([head8], lambda x, w: ops.int8_linear(x, w, scale, None)),
            },
            options.repeats,
        )
        step = times["layers"] + times["head"]
        draft = times["layers4"] + times["head"], times["layers4"] + times["head8"]
        print(
            f"{rows:4} {1e3 * times['layers']:18.1f} {1e3 * times['head']:6.1f} "
            f"{1e3 * step:6.1f} {bytes16 / step / speed:8.0%} {1e3 * times['layers4']:13.1f} "
            f"{1e3 * times['head8']:15.1f} {draft[0] / step:16.2f} · {draft[1] / step:.2f}"
        )

    print("attention of all layers, bfloat16, ms")
    for context in options.context:
        k, v = torch.randn(2, LAYERS, context, KV_HEADS, HEAD_DIM).bfloat16().transpose(2, 3)
        line = []
        for rows in options.rows:
            q = torch.randn(HEADS, rows, HEAD_DIM).bfloat16()
            mask = torch.arange(context) <= context - rows + torch.arange(rows)[:, None]

            def attend(q=q, k=k, v=v, mask=mask) -> None:
                for i in range(LAYERS):
                    ops.attention(q, k[i], v[i], mask, HEAD_DIM**-0.5)

            taken = shortest({"attention": attend}, options.repeats)["attention"]
            line.append(f"{rows} rows {1e3 * taken:.2f}")
        print(f"{context:6} slots: " + ", ".join(line))


def in_4_bits(weight: torch.Tensor) -> tuple[int, list[torch.Tensor]]:
    """A weight's width and its parts in NF4, as `nf4_rounded_linear` takes them."""
    packed, state = quantize_4bit(weight, quant_type="nf4", blocksize=64, compress_statistics=True)
    second = state.state2
    scales = nf4_scales(state.absmax, second.code, second.absmax, state.offset)
    return weight.shape[1], [packed, scales.view(len(weight), -1), state.code]


def shortest(actions: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Seconds that each takes at best, one after the other in each round."""
    best = dict.fromkeys(actions, float("inf"))
    for _ in range(repeats):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


if __name__ == "__main__":
    main()
