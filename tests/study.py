"""A copy of the project with tiny models in place of the embedded pair, and its study run in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from specdec.utils.files import exclusive_lock
from specdec.utils.paths import PROJECT_ROOT
from tests.tiny import make_model, make_tokenizer, perturbed

PARTS = ("Snakefile", "rules", "scripts", "specdec", "config", "profiles", "report")
OVERLAY = """\
pairs: [micro]
domains: [code]
sources: {code: {path: prompts.jsonl, field: question.text}}
prompts_per_domain: 4
max_new_tokens: 48
draft_tokens: [1, 2]
engine: eager
"""
DECODED = {"decode": 3, "make_tables": 1}
DRAWN = {
    "plot_speedup_heatmap": 1,
    "plot_latency_cdf": 1,
    "plot_time_breakdown": 1,
    "plot_acceptance_by_domain": 1,
    "plot_acceptance_by_position": 1,
}


class Study:
    """A folder that a study runs in; `project` is the checkout whose workflow runs there."""

    def __init__(self, folder: Path, project: Path | None = None):
        self.folder, self.project = folder, project or folder
        # With a timing lock of its own: these runs and real ones don't wait for each other.
        (folder / "tmp").mkdir(exist_ok=True)
        self.environment = {key: os.environ[key] for key in os.environ if key != "PYTHONPATH"} | {
            "TMPDIR": str(folder / "tmp"),
            "XDG_CACHE_HOME": str(folder / "tmp"),
            "HF_HUB_OFFLINE": "1",
        }

    def start(self, *arguments: str) -> subprocess.Popen:
        """`snakemake …` in a process group of its own; without arguments, the whole study."""
        place = ["-s", self.project / "Snakefile", "--directory", self.folder]
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *(arguments or ("all",)), *place]
            + ["--configfile", "study.yaml"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit code and output of `snakemake …`."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def script(self, name: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, self.project / "scripts" / name, *arguments],
            cwd=self.folder,
            env=self.environment | {"PYTHONPATH": str(self.project)},
            capture_output=True,
            text=True,
        )

    def jobs(self, *arguments: str) -> dict[str, int]:
        """How many jobs of each rule a run would start, `all` left out."""
        code, output = self.run("-n", "all", *arguments)
        assert code == 0, output
        if "Nothing to be done" in output:
            return {}
        counts = re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)
        return {rule: int(n) for rule, n in counts if rule not in ("all", "total")}

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace the first `old` in a file of the study, or else of the project."""
        file = self.folder / path if (self.folder / path).exists() else self.project / path
        text = file.read_text()
        assert old in text, f"{path} no longer holds {old!r}"
        file.write_text(text.replace(old, new, 1))


def make_project(folder: Path) -> Study:
    """A copy of the project whose embedded pair has random weights and a context of 512."""
    folder.mkdir(parents=True)
    for part in PARTS:
        source = PROJECT_ROOT / part
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, folder / part)
    tokenizer = make_tokenizer()
    target = make_model(vocab_size=len(tokenizer))
    draft = perturbed(target)
    models = {"micro/target": target, "micro/draft": draft, "micro_other/draft": draft}
    for name, model in models.items():
        model.save_pretrained(folder / "resources" / name)
        tokenizer.save_pretrained(folder / "resources" / name)
    write_study(folder)
    return Study(folder)


def finished_study(folders: pytest.TempPathFactory) -> Study:
    """A study that ran to its end: once for all processes of a session, so whoever changes it puts
    it back, and leaves its tables alone."""
    session = folders.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    folder, done = session / "finished_study", session / "finished_study.done"
    with exclusive_lock(session / "finished_study.lock", lambda: None):
        if not done.exists():
            code, output = make_project(folder).run("all", "--cores", "2")
            assert code == 0, output
            done.touch()
    return Study(folder)


def write_study(folder: Path) -> None:
    (folder / "study.yaml").write_text(OVERLAY)
    questions = [f"def add_{i}(a, b):\n    return a + {i} * b\n" for i in range(8)]
    lines = [json.dumps({"question": {"text": text}}) + "\n" for text in questions]
    (folder / "prompts.jsonl").write_text("".join(lines))
