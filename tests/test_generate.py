"""`specdec generate`: where its prompt comes from, what it prints as tokens come, how it ends."""

from __future__ import annotations

import io
import random
import subprocess
import sys

import pytest
import torch
import yaml

from specdec import __main__ as command
from specdec.commands import generate as generate_module
from specdec.commands.generate import TextStream
from specdec.commands.prompt_input import ECHOED_CHARACTERS, echo
from specdec.commands.text_stream import ACCEPTED, CONTEXT, LEGEND, OWN, PLAIN
from specdec.decoding import loaded_pair
from specdec.decoding.decoder import Decoder
from specdec.decoding.loaded_pair import load_pair
from specdec.engine import compiler, fast_model
from specdec.utils.errors import SpecdecError
from tests.test_chat import BARE, chatty
from tests.tiny import make_model, make_tokenizer, perturbed
from tests.toy_tokenizers import byte_level, sentencepiece

TOKENIZERS = {
    "byte-level": byte_level,
    "byte-level, as llama3": lambda: byte_level(style="llama3"),
    "sentencepiece": sentencepiece,
    "sentencepiece, metaspace": lambda: sentencepiece(style="metaspace"),
}
CHARACTERS = "añ日😀 b  .\nПр<0"


def streamed(tokenizer, ids: list[int], bursts: int, draft_tokens: int | None = None) -> str:
    """What a stream prints of ids that come in bursts."""
    stream = TextStream(tokenizer, draft_tokens)
    for start in range(0, len(ids), bursts):
        stream(ids[start : start + bursts])
    stream.flush()


class TestTextStream:
    @pytest.mark.parametrize("name", TOKENIZERS)
    @pytest.mark.parametrize("any_ids", [False, True], ids=["of text", "any ids"])
    def test_what_is_printed_is_the_decoded_text_whatever_the_bursts(self, name, any_ids, capsys):
        tokenizer = TOKENIZERS[name]()
        for seed in range(40):
            chance = random.Random(seed)
            if any_ids:
                ids = [chance.randrange(len(tokenizer)) for _ in range(60)]
            else:
                ids = tokenizer("".join(chance.choices(CHARACTERS, k=60))).input_ids
            for length in (1, 2, 7, len(ids)):
                streamed(tokenizer, ids[:length], chance.randint(1, 6))
                whole = tokenizer.decode(ids[:length], skip_special_tokens=True)
                assert capsys.readouterr().out == whole

    def test_a_burst_that_ends_inside_a_character_is_printed_up_to_it(self, capsys):
        tokenizer = make_tokenizer()
        ids = tokenizer("fox 😀").input_ids
        stream = TextStream(tokenizer)
        stream(ids[:-1])
        assert capsys.readouterr().out == "fox "
        stream(ids[-1:])
        assert capsys.readouterr().out == "😀"

    def test_flush_prints_what_was_held_back(self, capsys):
        tokenizer = make_tokenizer()
        ids = tokenizer("fox 😀").input_ids[:-1]
        stream = TextStream(tokenizer)
        stream(ids)
        stream.flush()
        assert capsys.readouterr().out == tokenizer.decode(ids)

    @pytest.mark.parametrize("text", ["the quick brown fox ", "\N{GRINNING FACE}"], ids=["a", "b"])
    def test_each_token_costs_a_bounded_number_of_decoded_tokens(self, text, monkeypatch, capsys):
        tokenizer = byte_level()
        ids = tokenizer(text * 400).input_ids
        if text != "the quick brown fox ":
            ids = [i for i in ids if "ð" in tokenizer.convert_ids_to_tokens(i)]  # no character ever
        decoded = []
        decode = tokenizer.decode
        monkeypatch.setattr(
            tokenizer, "decode", lambda ids, **rest: decoded.append(len(ids)) or decode(ids, **rest)
        )
        streamed(tokenizer, ids, 5)
        assert len(ids) >= 400
        assert sum(decoded) <= 4 * CONTEXT * len(ids)

    def test_accepted_tokens_and_the_targets_own_have_their_colours(self, capsys):
        tokenizer = make_tokenizer()
        a, b, c, d = (tokenizer.convert_tokens_to_ids(letter) for letter in "abcd")
        stream = TextStream(tokenizer, draft_tokens=2)
        stream([a])  # from the prompt
        stream([b, c])  # one kept, one replaced
        stream([d])  # none kept
        stream([a, b, c])  # all kept, and one more
        stream.flush()
        assert capsys.readouterr().out == (
            f"a{ACCEPTED}b{PLAIN}{OWN}c{PLAIN}{OWN}d{PLAIN}{ACCEPTED}a{PLAIN}{ACCEPTED}b{PLAIN}c"
        )


class TestEcho:
    def test_a_short_prompt_is_echoed_whole(self):
        assert echo("def f(\n    x") == "def f(\n    x"

    def test_a_long_one_by_its_last_line(self):
        assert echo("line\n" * 30 + "def f(") == "… def f("
        assert echo("line\n" * 30 + "def f(\n") == "… def f(\n"

    def test_a_long_line_by_its_end(self):
        assert echo("a" * 5000 + "b") == "… " + "a" * (ECHOED_CHARACTERS - 1) + "b"


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A pair without a chat template, and one with."""
    folder = tmp_path_factory.mktemp("pairs")
    tokenizer = make_tokenizer()
    target = make_model(vocab_size=len(tokenizer))
    entries = {}
    for name, made in {"plain": tokenizer, "chat": chatty(tokenizer, BARE)}.items():
        for side, model in {"target": target, "draft": perturbed(target)}.items():
            model.save_pretrained(folder / name / side)
            made.save_pretrained(folder / name / side)
        entries[name] = {
            side: {"model": str(folder / name / side), "dtype": "float32"}
            for side in ("draft", "target")
        }
    (folder / "pairs.yaml").write_text(yaml.safe_dump(entries))
    return folder / "pairs.yaml"


class Stdin(io.TextIOWrapper):
    def __init__(self, content: bytes, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(content), "utf-8")
        self.isatty = lambda: terminal


@pytest.fixture
def generate(registry, monkeypatch, capsys, tmp_path):
    """Runs the command, with nothing compiled before; returns what it printed."""
    monkeypatch.setenv("SPECDEC_CACHE", str(tmp_path / "compiled"))

    def run(*arguments: str, pair: str = "plain", stdin: Stdin | None = None) -> str:
        monkeypatch.setattr(sys, "stdin", stdin or Stdin(b""))
        options = ["--registry", str(registry), "--pair", pair, "--device", "cpu"]
        words = ["specdec", "generate", *options, "--max-new-tokens", "6", *arguments]
        monkeypatch.setattr(sys, "argv", words)
        command.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def unloaded(monkeypatch):
    """Fails where a model is loaded."""
    monkeypatch.setattr(loaded_pair, "load_side", lambda *_: pytest.fail("a model was loaded"))


class TestPrompt:
    def test_it_comes_from_an_argument_a_file_or_stdin(self, generate, tmp_path):
        path = tmp_path / "prompt.txt"
        path.write_text("The quick")
        said = [
            generate("--prompt", "The quick"),
            generate("--prompt-file", str(path)),
            generate(stdin=Stdin(b"The quick")),
        ]
        texts = {text.partition("\nSD")[0] for text in said}
        assert len(texts) == 1 and texts.pop().startswith("The quick")

    @pytest.mark.parametrize(
        ("arguments", "stdin", "says"),
        [
            ([], Stdin(b"", terminal=True), "no prompt: give --prompt"),
            ([], Stdin(b" \n"), "the prompt is empty"),
            (["--prompt", ""], None, "the prompt is empty"),
            ([], Stdin(b"a\nb\xff"), "stdin, line 2: byte 0xff is no UTF-8"),
            (["--prompt", "x\udcff"], None, "--prompt, line 1: byte 0xff is no UTF-8"),
            (["--prompt-file", "nowhere.txt"], None, "--prompt-file nowhere.txt: can't be read"),
            (["--prompt", "x", "--k", "-1"], None, "--k: -1 is below 0"),
            (["--prompt", "x", "--temperature", "nan"], None, "--temperature: nan is no number"),
            (["--prompt", "x", "--temperature", "inf"], None, "--temperature: inf is no number"),
            (["--prompt", "x", "--top-p", "0"], None, "--top-p: 0.0 is outside"),
            (["--prompt", "x", "--max-new-tokens", "0"], None, "--max-new-tokens: 0 is below 1"),
            (["--prompt", "x", "--compare", "--k", "0"], None, "give --k 1 or more"),
            (["--prompt", "x", "--chat"], None, "pair plain: .* has no chat template"),
            (["--prompt", "x", "--device", "gpu7"], None, "device 'gpu7' is none"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else type(value).__name__,
    )
    def test_what_is_wrong_is_said_before_a_model_is_loaded(
        self, generate, unloaded, arguments, stdin, says
    ):
        with pytest.raises(SpecdecError, match=says):
            generate(*arguments, stdin=stdin)

    def test_an_error_begins_its_own_line(self, registry):
        options = ["--registry", str(registry), "--pair", "plain", "--device", "cpu"]
        done = subprocess.run(
            [sys.executable, "-m", "specdec", "generate", *options, "--max-new-tokens", "600"]
            + ["--prompt", "x"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 2
        assert "\nerror: prompt + max_new_tokens" in done.stdout
        assert done.stdout.count("error:") == 1


class TestOutput:
    def test_the_text_is_that_of_the_library(self, generate, registry):
        said = generate("--prompt", "The quick", "--k", "3")
        pair = load_pair("plain", registry, "cpu")
        result = pair.decoder(3, "eager").generate(
            max_new_tokens=6, **pair.encode("The quick")._asdict()
        )
        text = pair.target.tokenizer.decode(result.generated_ids, skip_special_tokens=True)
        assert said.startswith(f"The quick{text}\nSD ")

    def test_colours_are_for_a_terminal_or_where_they_are_asked_for(self, generate):
        assert "\x1b[" not in generate("--prompt", "The quick")
        assert LEGEND in generate("--prompt", "The quick", "--color", "always")
        assert "\x1b[" not in generate("--prompt", "The quick", "--color", "always", "--k", "0")

    def test_the_hint_names_an_option_of_the_command(self, generate):
        said = generate("--prompt", "The quick")
        assert "--engine compiled" in said and "prepare()" not in said

    def test_the_engine_is_the_compiled_one_where_its_pieces_are_on_disk(
        self, generate, monkeypatch, uncompiled
    ):
        kept = set()

        def compile_ahead(module, *rest):
            if compiler._kept_only.get() and type(module) not in kept:
                raise compiler.NotKept
            kept.add(type(module))
            return module

        monkeypatch.setattr(fast_model, "compile_ahead", compile_ahead)
        assert "engine: eager" in generate("--prompt", "The quick")
        assert not kept
        assert "engine: compiled" in generate("--prompt", "The quick", "--engine", "compiled")
        assert "engine: compiled" in generate("--prompt", "The quick")

    @pytest.mark.parametrize(
        ("kept_for", "taken", "said"), [({2}, 2, False), ({1}, 1, True), (set(), 2, False)], ids=str
    )
    def test_pieces_for_one_thread_are_taken_where_there_are_none_for_more(
        self, generate, monkeypatch, kept_for, taken, said
    ):
        """Those of a study and of bench: generate, on all cores, found nothing there."""
        with_threads, lines = [], []
        monkeypatch.setattr(generate_module.log, "info", lines.append)

        def decode(self, *arguments, right=Decoder.generate, **settings):
            with_threads.append(torch.get_num_threads())
            return right(self, *arguments, **settings)

        monkeypatch.setattr(Decoder, "generate", decode)
        monkeypatch.setattr(
            Decoder, "prepare_from_disk", lambda *_: torch.get_num_threads() in kept_for
        )
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            generate("--prompt", "The quick")
        finally:
            torch.set_num_threads(before)
        assert with_threads == [taken]
        assert [line.startswith("one thread") for line in lines] == [True] * said

    def test_it_is_compared_with_the_target_alone_in_plain_words(self, generate):
        last = generate("--prompt", "The quick", "--compare").splitlines()[-1]
        assert " times as fast as the target alone" in last
        assert "tokens a second" in last and "the same tokens" in last

    def test_a_chat_goes_on_turn_after_turn(self, generate, registry, monkeypatch):
        seen = []
        encode = loaded_pair.encode_prompt

        def spy(tokenizer, prompt, chat):
            seen.append([message["role"] for message in prompt])
            return encode(tokenizer, prompt, chat)

        monkeypatch.setattr(loaded_pair, "encode_prompt", spy)
        stdin = Stdin(b"and then\n\nat last\n")
        said = generate("--chat", "--prompt", "The quick", pair="chat", stdin=stdin)
        turn = ["user", "assistant"]
        assert seen == [["user"], [*turn, "user"], [*turn, *turn, "user"]]
        assert said.count("SD ") == 3

    def test_a_terminal_that_cannot_show_a_character_shows_another(self, registry):
        options = ["--registry", str(registry), "--pair", "plain", "--device", "cpu"]
        done = subprocess.run(
            [sys.executable, "-m", "specdec", "generate", *options, "--max-new-tokens", "2"],
            input="déjà".encode(),
            capture_output=True,
            env={"PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "ascii", "HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(b"d?j?")
