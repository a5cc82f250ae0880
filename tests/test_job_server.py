"""scripts/job.py and job_server.py: a job forked from the server is what it would be by itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from specdec.utils.paths import PROJECT_ROOT

NOTHING_IMPORTED = """\
import runpy, sys
server = runpy.run_path(sys.argv[2])
server["main"].__globals__["preload"] = lambda: None
server["main"]()
"""
JOB = """\
import os, sys, time
print(sys.argv[1:], os.getcwd(), os.environ.get("COLOUR"), flush=True)
print("to standard error", file=sys.stderr)
if "wait" in sys.argv:
    open("pid", "w").write(str(os.getpid()))
    time.sleep(60)
if "raise" in sys.argv:
    raise ValueError("broken")
sys.exit({"fail": 3, "text": "error: a cause"}.get(sys.argv[1]))
"""


@pytest.fixture
def scripts(tmp_path):
    """A folder with the two scripts and a job that says what it was given."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    for name in ("job.py", "job_server.py"):
        shutil.copy(PROJECT_ROOT / "scripts" / name, folder)
    (folder / "say.py").write_text(JOB)
    return folder


@pytest.fixture
def environment(scripts, tmp_path):
    """What a client needs to find a server, which imports nothing beforehand here."""
    place = tmp_path / "jobs"
    shutil.copytree(PROJECT_ROOT / "specdec/utils", tmp_path / "specdec/utils")
    (tmp_path / "specdec/__init__.py").write_text("")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    server = subprocess.Popen(
        [sys.executable, "-c", NOTHING_IMPORTED, place, scripts / "job_server.py"], env=environment
    )
    wait_for(place.exists)
    yield environment | {"SPECDEC_JOB_SERVER": str(place), "COLOUR": "red"}
    server.terminate()
    server.wait()


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def run(scripts, environment, *arguments: str) -> subprocess.CompletedProcess:
    folder = scripts.parent / "study"
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, scripts / "job.py", "say.py", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(("argument", "code"), [("end", 0), ("fail", 3), ("text", 1), ("raise", 1)])
def test_a_job_of_the_server_is_what_it_is_alone(scripts, environment, argument, code):
    alone = {name: value for name, value in environment.items() if name != "SPECDEC_JOB_SERVER"}
    by_server, by_itself = run(scripts, environment, argument), run(scripts, alone, argument)
    assert by_server.returncode == by_itself.returncode == code
    assert by_server.stdout == by_itself.stdout
    assert f"['{argument}'] {scripts.parent / 'study'} red" in by_server.stdout
    last = [done.stderr.splitlines()[-1] for done in (by_server, by_itself)]
    assert last[0] == last[1]


def test_a_job_whose_client_is_killed_ends(scripts, environment):
    folder = scripts.parent / "study"
    folder.mkdir()
    command = [sys.executable, scripts / "job.py", "say.py", "wait"]
    client = subprocess.Popen(command, cwd=folder, env=environment)
    wait_for(lambda: (folder / "pid").exists() and (folder / "pid").read_text())
    pid = int((folder / "pid").read_text())
    os.kill(pid, 0)
    client.send_signal(signal.SIGKILL)
    client.wait()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
    assert run(scripts, environment, "end").returncode == 0  # and the server goes on


def test_an_edit_of_the_package_after_the_server_began_reaches_the_next_job(scripts, environment):
    (scripts.parent / "specdec/later.py").write_text("")
    os.utime(scripts.parent / "specdec/later.py", (time.time() + 9, time.time() + 9))
    done = run(scripts, environment, "end")
    assert done.returncode == 0 and "red" in done.stdout
