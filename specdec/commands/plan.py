"""Say what a pair would need and gain on this machine, before anything is downloaded."""

from __future__ import annotations

import argparse

from specdec.commands.arguments import check_numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", required=True, help="name in the registry, e.g. gpt2_dev")
    parser.add_argument("--registry", help="pairs file; default: config/pairs.yaml")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument(
        "--dtype-override",
        default="none",
        choices=["none", "float32", "float16", "bfloat16", "int4"],
        help="dtype of both models; none: what the registry says",
    )
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2, 4, 8], help="draft tokens")
    parser.add_argument("--context", type=int, default=256, help="tokens in the cache")
    parser.add_argument("--threads", type=int, default=1, help="threads of the processor")
    parser.add_argument(
        "--engine",
        default="eager",
        choices=["eager", "compiled"],
        help="compiled: the fast engine, after some minutes of compiling (once a machine)",
    )
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="how long to measure, about, if there is time"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=120.0,
        help="seconds that all of it may take, about; a K that it leaves no time for is left out",
    )
    parser.add_argument(
        "--on",
        metavar="CARD",
        help="predict instead of measuring: h100, h200, a100, l4, rtx4090; or `here`: measure this "
        "machine's figures, and show what they predict of the pair beside what is measured",
    )
    parser.add_argument(
        "--acceptance",
        metavar="α",
        help="with --on: the acceptance rate to tell S for, or the folder of a study's tables",
    )


def run(arguments: argparse.Namespace) -> None:
    check_numbers(arguments, least_k=1)

    # Late, so that `--help` and a wrong argument answer at once.
    import json

    import torch

    from specdec.models.loading.loader import resolve_device
    from specdec.models.registry import get_pair
    from specdec.planning.costs import make_request, measure_costs
    from specdec.planning.page import format_card, format_table
    from specdec.planning.plan import make_card, make_plan
    from specdec.planning.prediction import compare_here, predict_on
    from specdec.planning.prediction_page import format_comparison, format_prediction
    from specdec.utils.reproducibility import set_threads

    published = arguments.on not in (None, "here")
    set_threads(arguments.threads)
    request = make_request(
        get_pair(arguments.pair, arguments.registry),
        sorted(set(arguments.k)),
        arguments.context,
        torch.device("cuda") if published else resolve_device(arguments.device),
        arguments.seconds,
        None if arguments.dtype_override == "none" else arguments.dtype_override,
        arguments.engine,
        arguments.budget,
    )
    if published:
        plan = predict_on(arguments.on, request, arguments.acceptance)
        print(f"{format_prediction(plan)}\n\n{json.dumps(plan, ensure_ascii=False)}")
        return
    card = make_card(request)
    print(format_card(card), flush=True)
    costs = measure_costs(request)
    plan = make_plan(card, costs)
    print(f"{format_table(plan)}\n")
    if arguments.on is not None and not plan["interrupted"]:
        compared = compare_here(request, costs, arguments.acceptance)
        print(f"{format_comparison(compared)}\n")
        plan["predicted"] = compared
    print(json.dumps(plan, ensure_ascii=False), flush=True)
    if plan["interrupted"]:
        raise KeyboardInterrupt
