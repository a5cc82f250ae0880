"""What a benchmark is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.benchmark.arms import Request

PEERS = ("transformers", "llama.cpp")


@dataclass(frozen=True)
class Settings:
    """The options of the command, under their names."""

    pair: str
    registry: str | None = None
    k: tuple[int, ...] = (1, 2, 4, 8)
    prompts: int = 10
    domain: str = "code"
    prompt_tokens: int = 128
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repeats: int = 3
    threads: int = 1
    device: str = "auto"
    engine: str = "auto"
    against: tuple[str, ...] = ()  # of PEERS
    synthetic_acceptance: float | None = None
    instrumentation: bool = False
    seed: int = 42

    @property
    def request(self) -> Request:
        return Request(self.max_new_tokens, self.temperature, self.top_k, self.top_p, self.seed)

    @property
    def acceptance(self) -> str:
        """`measured`, or what is forced: as in the tables of a study."""
        rate = self.synthetic_acceptance
        return "measured" if rate is None else f"synthetic {rate:g}"

    @property
    def reach(self) -> int:
        """Tokens that a prompt must leave room for."""
        return self.max_new_tokens + max(self.k)
