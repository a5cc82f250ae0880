"""The command line: what it is, what it lists, and what it refuses before it begins."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import yaml

import specdec
from specdec import __main__ as command
from specdec.models import ollama_loader
from specdec.models.registry import load_registry
from specdec.planning import overview
from specdec.planning.overview import format_overview
from specdec.utils import extras
from specdec.utils.errors import SpecdecError
from specdec.utils.files import check_output

CPU = torch.device("cpu")


def test_the_version_is_told(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["specdec", "--version"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"specdec {specdec.__version__}\n"


class TestPairs:
    @pytest.fixture
    def pairs(self, tmp_path):
        sizes = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1}
        made = {"dtype": "float32", "weights": "random", "shape": sizes}
        entries = {
            "made": {"draft": made, "target": made},
            "huge": {"draft": made, "target": made, "memory_gb": 1e6},
            "gone": {"draft": made, "target": {"model": "./nowhere", "dtype": "float32"}},
            "four": {"draft": made | {"dtype": "int4"}, "target": made},
        }
        path = tmp_path / "pairs.yaml"
        path.write_text(yaml.safe_dump(entries))
        return list(load_registry(path).values())

    def row(self, text: str, name: str) -> list[str]:
        line = next(line for line in text.splitlines() if line.startswith(name))
        return [cell.strip() for cell in line.split("  ") if cell.strip()]

    def test_each_says_what_it_needs_and_whether_it_fits(self, pairs):
        text = format_overview(pairs, CPU)
        assert "GB free on cpu" in text.splitlines()[0]
        assert self.row(text, "micro ")[-2:] == ["on disk", "fits"]
        assert self.row(text, "micro ")[2] == "0.5 GB"
        assert self.row(text, "gpt2_dev ")[-2] in ("from the hub", "in the hub's cache")
        assert self.row(text, "made")[-2:] == ["random", "fits"]
        assert self.row(text, "huge")[-1] == "too large"
        assert self.row(text, "gone")[-3:] == ["?", "random, missing", "?"]

    def test_4_bits_need_an_extra(self, pairs, monkeypatch):
        monkeypatch.setattr(overview, "_has_int4", lambda: False)
        assert self.row(format_overview(pairs, CPU), "four")[-1] == "needs the extra 'gpu'"

    def test_the_command_lists_them(self, capsys, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["specdec", "pairs", "--device", "cpu"])
        command.main()
        assert "micro_int4" in capsys.readouterr().out


class TestOutputs:
    def test_a_file_that_can_be_written_leaves_no_trace(self, tmp_path):
        check_output(tmp_path / "new" / "file.json")
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    def test_a_folder_is_refused(self, tmp_path):
        with pytest.raises(SpecdecError, match="is a folder; name a file in it"):
            check_output(tmp_path)

    def test_a_folder_that_is_a_file_is_refused(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(SpecdecError, match="nothing can be written there .it is no folder"):
            check_output(tmp_path / "file" / "out.json")

    @pytest.mark.parametrize("name", ["bench", "certify"])
    def test_outputs_are_tried_before_a_model_is_loaded(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "results").touch()
        words = {"bench": ["--out", "results/x.json"], "certify": []}[name]
        monkeypatch.setattr(sys, "argv", ["specdec", name, "--pair", "micro", *words])
        monkeypatch.setattr(
            "specdec.decoding.loaded_pair.load_side", lambda *_: pytest.fail("a model was loaded")
        )
        with pytest.raises(SpecdecError, match="nothing can be written there"):
            command.main()


class TestExtras:
    def test_what_is_missing_is_one_line_that_names_the_extra(self, monkeypatch):
        monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(SpecdecError) as error:
            ollama_loader.main([])
        assert "needs ollama, of the extra 'ollama'" in str(error.value)
        assert "\n" not in str(error.value)

    def test_the_package_runs_without_any_extra(self):
        blocked = ["ollama", "gguf", "xllamacpp", "bitsandbytes", "accelerate", "snakemake"]
        code = (
            "import sys\n"
            f"for name in {blocked}: sys.modules[name] = None\n"
            "import specdec.__main__, specdec.models.ollama_loader, specdec.benchmark.run\n"
            "import specdec.planning.costs, specdec.certification.certificate\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
