"""Ask a local Ollama server which models it holds, and try one: does it fit this hardware?

A convenience before the full weights are downloaded, and no part of the benchmark. Speculative
decoding needs the target's whole distribution at every drafted position; Ollama's server returns
text. It gives no logits over the vocabulary, so nothing can be accepted or rejected against them;
its cache can be neither extended by chosen tokens nor rolled back; and it runs weights quantised in
its own way (GGUF) with a sampler of its own, so not even its baseline would be ours.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from specdec.utils.errors import SpecdecError, cli, one_line
from specdec.utils.extras import require
from specdec.utils.logging import get_logger

if TYPE_CHECKING:
    import ollama

DEFAULT_HOST = "http://localhost:11434"


def server_address() -> str:
    """Where the server is asked for: OLLAMA_HOST as for Ollama's own commands, else localhost."""
    return os.environ.get("OLLAMA_HOST") or DEFAULT_HOST


def list_models() -> list[ollama.ListResponse.Model]:
    """The models that the server holds."""
    with _explained():
        return list(_client().list().models)


def generate(model: str, prompt: str, max_tokens: int) -> str:
    """Let the server continue a prompt by at most `max_tokens` tokens."""
    with _explained():
        return _client().generate(model, prompt, options={"num_predict": max_tokens}).response


def _library():
    """Ollama's client, which is an extra."""
    require("ollama", ["ollama"], "asking an Ollama server")
    import ollama

    return ollama


def _client() -> ollama.Client:
    return _library().Client(server_address())


@contextmanager
def _explained() -> Iterator[None]:
    ollama, address = _library(), server_address()
    try:
        yield
    except ollama.ResponseError as error:
        raise SpecdecError(
            f"the Ollama server at {address} refused: {error}; `ollama list` shows what it holds"
        ) from error
    except ConnectionError as error:
        raise SpecdecError(
            f"no Ollama server answers at {address}; start one with `ollama serve`, or set "
            "OLLAMA_HOST to where it runs"
        ) from error
    except Exception as error:  # whatever the client makes of an answer that is not Ollama's
        raise SpecdecError(
            f"what answers at {address} is no working Ollama server ({type(error).__name__}: "
            f"{one_line(error)}); set OLLAMA_HOST to where one runs"
        ) from error


def format_models(models: list[ollama.ListResponse.Model]) -> str:
    """The table of parameters, quantisation and size on disk (GB of 10^9 bytes)."""
    lines = [f"{'model':<34}{'params':>8}{'quant':>8}{'size (GB)':>11}", "-" * 61]
    for model in models:
        details = model.details
        parameters = (details and details.parameter_size) or "?"
        quantisation = (details and details.quantization_level) or "?"
        size = f"{model.size / 1e9:.1f}" if model.size is not None else "?"
        lines.append(f"{model.model or '?':<34}{parameters:>8}{quantisation:>8}{size:>11}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m specdec.models.ollama_loader",
        description="List the models of a local Ollama server, or try one of them.",
    )
    parser.add_argument("--model", help="try this model, for instance llama3:8b")
    parser.add_argument("--prompt", default="Explain speculative decoding in one sentence.")
    parser.add_argument("--max-tokens", type=int, default=50)
    arguments = parser.parse_args(argv)
    if arguments.max_tokens < 1:
        raise SpecdecError(f"--max-tokens {arguments.max_tokens} is below 1")

    _library()
    log = get_logger("ollama", to_stdout=True)
    log.info("checking server at %s …", server_address())
    models = list_models()
    log.info("✓ server is running.")
    if arguments.model is None:
        print("\n" + format_models(models))
        return
    log.info("generating up to %d tokens with %s …", arguments.max_tokens, arguments.model)
    print("\n" + generate(arguments.model, arguments.prompt, arguments.max_tokens))


if __name__ == "__main__":
    cli(main)
