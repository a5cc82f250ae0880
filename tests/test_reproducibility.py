"""Seeds, environment, the digest of the code, whole files and the lock of a timed run."""

import json
import random
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from specdec.utils import machine, reproducibility
from specdec.utils.digest import code_digest, import_closure
from specdec.utils.errors import SpecdecError
from specdec.utils.paths import PROJECT_ROOT
from specdec.utils.reproducibility import (
    atomic_write,
    capture_environment,
    deterministic_flags,
    exclusive_lock,
    set_seed,
    set_threads,
)


class TestSeeds:
    def test_the_same_seed_gives_the_same_numbers_in_every_library(self):
        def draw():
            return random.random(), np.random.rand(), torch.rand(1).item()

        set_seed(7)
        first = draw()
        set_seed(7)
        assert draw() == first
        set_seed(8)
        assert draw() != first

    @pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1])
    def test_large_seeds_are_seeds_too(self, seed):
        set_seed(seed)

    def test_deterministic_flags_can_be_set_and_taken_back(self):
        deterministic_flags()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_float32_matmul_precision() == "highest"
        deterministic_flags(False)
        assert not torch.are_deterministic_algorithms_enabled()

    def test_threads_are_those_asked_for(self):
        before = torch.get_num_threads()
        try:
            set_threads(2)
            assert torch.get_num_threads() == 2
        finally:
            set_threads(before)

    def test_no_thread_at_all_is_an_error(self):
        with pytest.raises(SpecdecError, match="threads: 0 is below 1"):
            set_threads(0)

    def test_threads_that_would_share_a_core_are_an_error(self, monkeypatch):
        monkeypatch.setattr(machine, "available_cores", lambda: 2)
        with pytest.raises(SpecdecError, match="threads: 3 is above the 2 cores"):
            set_threads(3)


class TestEnvironment:
    KEYS = {
        "git_revision",
        "git_dirty",
        "python",
        "torch",
        "transformers",
        "specdec",
        "bitsandbytes",
        "cuda",
        "driver",
        "device",
        "device_type",
        "threads",
        "platform",
        "memory_gb",
        "tf32",
    }

    def test_it_says_where_a_run_takes_place(self):
        environment = capture_environment("cpu")
        assert set(environment) == self.KEYS
        assert environment["device_type"] == "cpu"
        assert environment["device"]
        assert environment["driver"] is None
        assert environment["threads"] == torch.get_num_threads()
        assert environment["memory_gb"] > 0
        assert environment["transformers"].startswith("5.")

    def test_it_fits_into_a_line_of_json(self):
        environment = capture_environment(torch.device("cpu"))
        assert json.loads(json.dumps(environment)) == environment

    @pytest.fixture
    def checkout(self, tmp_path, monkeypatch):
        """A project folder that is no checkout yet."""
        monkeypatch.setattr(reproducibility, "PROJECT_ROOT", tmp_path)
        reproducibility._git_state.cache_clear()
        yield tmp_path
        reproducibility._git_state.cache_clear()

    @staticmethod
    def git(folder, *arguments) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(folder), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def test_outside_a_checkout_there_is_no_revision(self, checkout):
        environment = capture_environment("cpu")
        assert environment["git_revision"] is environment["git_dirty"] is None

    def test_a_repository_around_the_project_is_not_the_projects(self, checkout, monkeypatch):
        self.git(checkout, "init", "-q")
        self.git(checkout, "commit", "-q", "--allow-empty", "-m", "someone else's")
        inner = checkout / "vendored"
        inner.mkdir()
        monkeypatch.setattr(reproducibility, "PROJECT_ROOT", inner)
        assert capture_environment("cpu")["git_revision"] is None

    def test_a_repository_without_a_commit_has_no_revision(self, checkout):
        self.git(checkout, "init", "-q")
        assert capture_environment("cpu")["git_revision"] is None

    def test_in_a_checkout_it_names_revision_and_changes(self, checkout):
        self.git(checkout, "init", "-q")
        (checkout / "file").write_text("a")
        self.git(checkout, "add", "file")
        self.git(checkout, "commit", "-q", "-m", "first")
        self.git(checkout, "tag", "-m", "a tag must not stand in the revision", "v1")
        revision = self.git(checkout, "rev-parse", "HEAD")
        environment = capture_environment("cpu")
        assert (environment["git_revision"], environment["git_dirty"]) == (revision, False)

        (checkout / "file").write_text("b")
        reproducibility._git_state.cache_clear()
        assert capture_environment("cpu")["git_dirty"] is True

    def test_git_is_asked_once(self, checkout, monkeypatch):
        self.git(checkout, "init", "-q")
        self.git(checkout, "commit", "-q", "--allow-empty", "-m", "first")
        capture_environment("cpu")
        monkeypatch.setattr(reproducibility, "_output", lambda command: pytest.fail(str(command)))
        capture_environment("cpu")

    def test_a_machine_without_git_has_no_revision(self, checkout, monkeypatch):
        (checkout / ".git").mkdir()
        monkeypatch.setenv("PATH", "")
        assert capture_environment("cpu")["git_revision"] is None


PACKAGE = {
    "__init__.py": '"""Toy."""\n__version__ = "1"\n',
    "decode.py": (
        "from specdec.utils.clock import now\n"
        "from . import models, tools\n"
        "log = None\n"
        "def decode(x):\n"
        '    """Decode."""\n'
        "    from specdec.models.wrapper import wrap  # late\n"
        '    log.info("decoding %s", x)\n'
        "    return wrap(x), now(), models, tools\n"
    ),
    "models/__init__.py": "SIZE = 1\n",
    "models/wrapper.py": "from .cache import CACHE\nwrap = CACHE\n",
    "models/cache.py": "import json\nCACHE = json\n",
    "models/kernel.cpp": "int one() { return 1; }\n",
    "models/notes.txt": "nothing\n",
    "models/other/kernel.cpp": "int two() { return 2; }\n",
    "tools.py": (
        "def hammer(nail):\n"
        "    if nail is None:\n"
        "        raise ValueError(f'no nail: {nail}' + _reason(nail, 1))\n"
        "    return _strike(nail)\n"
        "def _reason(nail, n):\n"
        "    return 'lost' if n else _reason(nail, n - 1)\n"
        "def _strike(nail):\n"
        "    return nail.get('head')\n"
    ),
    "utils/__init__.py": "",
    "utils/clock.py": "import time\nnow = time.time\n",
    "plots.py": "import specdec.decode\nCOLOUR = 'red'\n",
}


class TestDigest:
    @pytest.fixture
    def root(self, tmp_path):
        for name, text in PACKAGE.items():
            path = tmp_path / "specdec" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    @staticmethod
    def edit(root, name: str, old: str, new: str) -> None:
        path = root / "specdec" / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    def test_the_closure_holds_what_is_imported_early_late_and_relatively(self, root):
        assert list(import_closure("specdec.decode", root)) == [
            "specdec",
            "specdec.decode",
            "specdec.models",
            "specdec.models.cache",
            "specdec.models.wrapper",
            "specdec.tools",
            "specdec.utils",
            "specdec.utils.clock",
        ]

    def test_importing_a_submodule_by_its_full_name_counts(self, root):
        assert "specdec.decode" in import_closure("specdec.plots", root)

    def test_the_digest_is_16_hex_digits_and_stable(self, root):
        digest = code_digest("specdec.decode", root)
        assert len(digest) == 16
        int(digest, 16)
        assert digest == code_digest("specdec.decode", root)

    @pytest.mark.parametrize(
        "name, old, new",
        [
            ("decode.py", "log = None", "# a comment\nlog = None"),
            ("decode.py", "  # late", ""),
            ("decode.py", "log = None\n", "log = None\n\n\n"),
            ("decode.py", '"""Decode."""', '"""Decode what is given."""'),
            ("decode.py", '    """Decode."""\n', ""),
            ("__init__.py", '"""Toy."""', '"""A toy."""'),
            ("decode.py", "decoding %s", "now decoding: %s"),
            ("decode.py", '"decoding %s"', 'f"decoding {x!r}: " "%s"'),
            ("plots.py", "red", "blue"),
            ("tools.py", "no nail: {nail}", "there is no nail"),
            ("tools.py", "'lost'", "'gone'"),
            ("models/notes.txt", "nothing", "something"),
            ("models/other/kernel.cpp", "return 2", "return 3"),
        ],
    )
    def test_talk_and_unrelated_modules_do_not_count(self, root, name, old, new):
        before = code_digest("specdec.decode", root)
        self.edit(root, name, old, new)
        assert code_digest("specdec.decode", root) == before

    @pytest.mark.parametrize(
        "name, old, new",
        [
            ("decode.py", "return wrap(x)", "return wrap(x + 1)"),
            ("decode.py", "info(", "info(now(), "),
            ("models/cache.py", "CACHE = json", "CACHE = [json]"),
            ("models/__init__.py", "1", "2"),
            ("__init__.py", '"1"', '"2"'),
            ("utils/clock.py", "time.time", "time.monotonic"),
            ("tools.py", "is None", "is False"),
            ("tools.py", "ValueError", "KeyError"),
            ("tools.py", "'head'", "'foot'"),
            ("models/kernel.cpp", "return 1", "return 2"),
        ],
    )
    def test_an_edit_to_the_code_is_noticed(self, root, name, old, new):
        before = code_digest("specdec.decode", root)
        self.edit(root, name, old, new)
        assert code_digest("specdec.decode", root) != before

    def test_touching_a_file_is_not_noticed(self, root):
        before = code_digest("specdec.decode", root)
        (root / "specdec/decode.py").touch()
        assert code_digest("specdec.decode", root) == before

    def test_moving_a_module_is_noticed(self, root):
        before = code_digest("specdec.decode", root)
        shutil.move(root / "specdec/models/cache.py", root / "specdec/models/store.py")
        self.edit(root, "models/wrapper.py", ".cache", ".store")
        assert code_digest("specdec.decode", root) != before

    def test_an_unknown_module_is_a_clear_error(self, root):
        with pytest.raises(SpecdecError, match="no module specdec.nothing"):
            code_digest("specdec.nothing", root)

    def test_asking_for_a_digest_loads_no_torch(self):
        code = (
            "import sys; from specdec.utils.digest import code_digest;"
            "print(code_digest('specdec.profiling.records'), 'torch' in sys.modules)"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT)
        assert done.stdout.split() == [code_digest("specdec.profiling.records"), "False"]

    def test_a_kernels_source_is_code_of_a_decode_job_and_an_error_of_the_hub_is_not(
        self, tmp_path
    ):
        shutil.copytree(PROJECT_ROOT / "specdec", tmp_path / "specdec")
        before = code_digest("specdec.study.job", tmp_path)
        assert before == code_digest("specdec.study.job")
        for hub in tmp_path.rglob("hub.py"):
            hub.write_text(hub.read_text().replace("check the", "look up the"))
        assert code_digest("specdec.study.job", tmp_path) == before
        kernel = tmp_path / "specdec/kernels/products.h"
        kernel.write_text(kernel.read_text() + "\n")
        assert code_digest("specdec.study.job", tmp_path) != before


class TestAtomicWrite:
    def test_a_finished_file_is_there_whole(self, tmp_path):
        path = tmp_path / "new" / "out.txt"
        with atomic_write(path) as file:
            file.write("τ\n")
            assert not path.exists()
        assert path.read_text(encoding="utf-8") == "τ\n"
        assert list(path.parent.iterdir()) == [path]

    def test_a_failure_leaves_the_old_file_and_no_rubbish(self, tmp_path):
        path = tmp_path / "out.txt"
        path.write_text("old")
        with pytest.raises(ZeroDivisionError):
            with atomic_write(path) as file:
                file.write("half")
                _ = 1 / 0
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_bytes_can_be_written_too(self, tmp_path):
        with atomic_write(tmp_path / "out", "wb") as file:
            file.write(b"\x00")
        assert (tmp_path / "out").read_bytes() == b"\x00"


HOLD_LOCK = """
import sys
from specdec.utils.files import exclusive_lock
with exclusive_lock(sys.argv[1], lambda: None):
    print("held", flush=True)
    sys.stdin.read()
"""


class TestLock:
    def test_a_free_lock_is_taken_at_once(self, tmp_path):
        with exclusive_lock(tmp_path / "new" / "lock", on_wait=lambda: pytest.fail("waited")):
            pass
        with exclusive_lock(tmp_path / "new" / "lock", on_wait=lambda: pytest.fail("waited")):
            pass

    @pytest.mark.parametrize("end", ["exit", "kill -9"])
    def test_the_second_process_waits_until_the_first_is_gone(self, tmp_path, end):
        path = tmp_path / "lock"
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD_LOCK, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=PROJECT_ROOT,
        )
        assert holder.stdout.readline() == b"held\n"
        waiting, taken = threading.Event(), threading.Event()

        def take() -> None:
            with exclusive_lock(path, on_wait=waiting.set):
                taken.set()

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        assert waiting.wait(timeout=30)
        assert not taken.is_set()
        holder.stdin.close() if end == "exit" else holder.kill()
        assert taken.wait(timeout=30)
        holder.wait()
        holder.stdout.close()
        thread.join()
