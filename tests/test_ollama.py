"""The Ollama convenience, against a server of the test's own on the loopback device."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from specdec.models import ollama_loader
from specdec.utils.errors import SpecdecError, cli

MODELS = {
    "models": [
        {
            "model": "llama3:8b",
            "size": 4_661_224_676,
            "details": {"parameter_size": "8B", "quantization_level": "Q4_0"},
        },
        {
            "model": "phi3:mini",
            "size": 2_176_178_913,
            "details": {"parameter_size": "3.8B", "quantization_level": "Q4_0"},
        },
        {"model": "bare"},
    ]
}


class FakeOllama(BaseHTTPRequestHandler):
    requests: list[dict] = []

    def do_GET(self):
        self.reply(200, MODELS if self.path == "/api/tags" else {})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(asked)
        if asked["model"] == "llama3:8b":
            self.reply(
                200, {"model": asked["model"], "response": "Attention weighs.", "done": True}
            )
        else:
            self.reply(404, {"error": f"model '{asked['model']}' not found"})

    def reply(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments):
        pass


class NotOllama(FakeOllama):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"hello\n")


@pytest.fixture
def serve(monkeypatch):
    """Start a server and let OLLAMA_HOST name it; returns its address."""
    servers = []

    def start(handler) -> str:
        server = HTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("OLLAMA_HOST", address)
        return address

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_status_lists_models_with_parameters_quantisation_and_size(serve, capsys):
    address = serve(FakeOllama)
    ollama_loader.main([])
    assert capsys.readouterr().out == (
        f"[ollama] checking server at {address} …\n"
        "[ollama] ✓ server is running.\n"
        "\n"
        "model                               params   quant  size (GB)\n"
        "-------------------------------------------------------------\n"
        "llama3:8b                               8B    Q4_0        4.7\n"
        "phi3:mini                             3.8B    Q4_0        2.2\n"
        "bare                                     ?       ?          ?\n"
    )


def test_a_model_can_be_tried(serve, capsys):
    serve(FakeOllama)
    FakeOllama.requests.clear()
    ollama_loader.main(["--model", "llama3:8b", "--prompt", "Explain", "--max-tokens", "7"])
    assert capsys.readouterr().out.endswith("Attention weighs.\n")
    [asked] = FakeOllama.requests
    assert (asked["prompt"], asked["options"]) == ("Explain", {"num_predict": 7})


def test_a_model_that_the_server_does_not_hold_is_named(serve):
    serve(FakeOllama)
    with pytest.raises(SpecdecError, match="model 'nope' not found.*`ollama list`"):
        ollama_loader.main(["--model", "nope"])


def test_without_a_server_it_says_how_to_start_one(monkeypatch, capsys):
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(SystemExit) as ended:
        cli(lambda: ollama_loader.main([]))
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: no Ollama server answers at http://127.0.0.1:9; start one")
    assert printed.count("\n") == 1


def test_another_server_is_told_from_ollama(serve):
    serve(NotOllama)
    with pytest.raises(SpecdecError, match="is no working Ollama server"):
        ollama_loader.main([])


def test_the_default_is_this_machine(monkeypatch):
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    assert ollama_loader.server_address() == "http://localhost:11434"


def test_no_token_to_generate_is_refused():
    with pytest.raises(SpecdecError, match="--max-tokens 0 is below 1"):
        ollama_loader.main(["--max-tokens", "0"])


def test_the_docstring_says_why_ollama_is_not_benchmarked():
    for reason in ("logits", "cache", "quantised", "sampler"):
        assert reason in ollama_loader.__doc__
