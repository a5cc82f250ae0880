"""One optimisation loop for every model: Muon and AdamW, warm-up and cosine, resumable."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

LOG_EVERY = 20  # steps between two points of the loss curve


def make_optimisers(model: torch.nn.Module, settings: dict) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, norms and biases."""
    matrices = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(
        matrices,
        lr=settings["hidden_lr"],
        weight_decay=settings["weight_decay"],
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(others, lr=settings["other_lr"], betas=(0.9, 0.95), weight_decay=0.0)
    return [muon, adamw]


def learning_rate_factor(step: int, steps: int, warmup_steps: int) -> float:
    """Linear warm-up to 1, then a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def save_atomically(state: dict, path: Path) -> None:
    """A checkpoint is either the old one or the new one, never half of one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def resume(checkpoint: Path, model, optimisers: list, steps: int) -> dict:
    """Load what `checkpoint` holds, if it exists, and return the log of the phase so far."""
    if not checkpoint.exists():
        return {"steps": steps, "step": 0, "seconds": 0.0, "losses": [], "resumed_at": []}
    state = torch.load(checkpoint, map_location="cpu")
    model.load_state_dict(state["model"])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    log = state["log"]
    if log["step"] < steps:
        log["resumed_at"].append(log["step"])
    return log


def update(model, optimisers: list, loss: torch.Tensor, clip: float) -> float:
    """One step down the gradient of `loss`; returns its value."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return loss.item()


def run_phase(
    model: torch.nn.Module,
    loss_at: Callable[[int], torch.Tensor],
    phase: dict,
    checkpoint: Path,
    checkpoint_every: int,
) -> dict:
    """Minimise `loss_at(step)` for `phase["steps"]` steps, from `checkpoint` where there is one.

    The data of a step depend on its number alone, so a resumed run is the undisturbed one.
    Returns the log: losses as [step, mean since the last entry], seconds, the steps it resumed at.
    """
    settings, steps = phase["optimiser"], phase["steps"]
    optimisers = make_optimisers(model, settings)
    base_rates = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
    log = resume(checkpoint, model, optimisers, steps)
    model.train()
    recent, started = [], time.perf_counter()
    for step in range(log["step"], steps):
        factor = learning_rate_factor(step, steps, settings["warmup_steps"])
        for optimiser, rate in zip(optimisers, base_rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * factor
        recent.append(update(model, optimisers, loss_at(step), settings["clip"]))
        done, last = step + 1, step + 1 == steps
        if done % LOG_EVERY == 0 or last:
            log["losses"].append([done, round(sum(recent) / len(recent), 4)])
            print(f"{checkpoint.stem} {done}/{steps} loss {log['losses'][-1][1]:.4f}", flush=True)
            recent = []
        if done % checkpoint_every == 0 or last:
            now = time.perf_counter()
            log["step"], log["seconds"] = done, round(log["seconds"] + now - started, 1)
            started = now
            states = [optimiser.state_dict() for optimiser in optimisers]
            save_atomically(
                {"model": model.state_dict(), "optimisers": states, "log": log}, checkpoint
            )
    model.eval()
    return log
