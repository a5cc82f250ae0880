"""Import what the jobs of a study need once, and fork a process for each of them.

Starting Python, torch and transformers takes longer than a short job. `run_study.py` starts this
server; `job.py` hands it a job: the script, its arguments, its folder, its environment and the
open files that it writes to. A job is a process of its own, with nothing of another's in it.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import specdec

SECONDS = 0.1  # between two looks at what has ended
LONGEST = 2**18  # bytes of what a client says: mostly its environment


def preload() -> None:
    """Import what jobs import. No device may be in use yet: a fork would lose it."""
    import torch._inductor.compile_fx  # noqa: F401  (what compiles, and loads what is compiled)

    import specdec.analysis.figures.style  # noqa: F401
    import specdec.analysis.tables  # noqa: F401
    import specdec.study.job  # noqa: F401

    gc.collect()
    gc.freeze()  # so that no collection touches, and copies, what all jobs share


def newest_source() -> float:
    """When the package was changed last; what is imported is as old as that, or older."""
    return max(path.stat().st_mtime for path in Path(specdec.__file__).parent.rglob("*.py"))


def receive(connection: socket.socket, imported: float) -> int | None:
    """Start the job that a client hands over; its process id.

    None where the package was edited after it was `imported`: the client is told, and runs the job.
    """
    message, files, _, _ = socket.recv_fds(connection, LONGEST, 2)
    pid = None
    if newest_source() > imported:
        connection.sendall(b"outdated")
        connection.close()
    else:
        pid = os.fork()
        if pid == 0:
            os._exit(run(json.loads(message), files))
    for file in files:
        os.close(file)
    return pid


def run(job: dict, files: list[int]) -> int:
    """In the new process: be what `python SCRIPT ARGUMENTS` would be; its exit code."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number, file in enumerate(files, 1):  # standard output, standard error
        os.dup2(file, number)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.argv = job["command"]
    code: object = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


def serve(server: socket.socket, imported: float) -> None:
    """Fork jobs and tell how they ended, until the process that started this one is gone."""
    parent = os.getppid()
    waiting: dict[int, socket.socket] = {}  # clients, by the process of their job
    with selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while os.getppid() == parent:
            for key, _ in selector.select(SECONDS):
                if key.fileobj is server:
                    connection, _ = server.accept()
                    if pid := receive(connection, imported):
                        waiting[pid] = connection
                        selector.register(connection, selectors.EVENT_READ)
                else:  # a client says nothing more: it is gone, and nobody waits for its job
                    selector.unregister(key.fileobj)
                    pid = next(pid for pid, client in waiting.items() if client is key.fileobj)
                    os.kill(pid, signal.SIGTERM)
            for pid, connection in list(waiting.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    del waiting[pid]
                    if connection in (key.fileobj for key in selector.get_map().values()):
                        selector.unregister(connection)
                        connection.sendall(b"%d" % (os.waitstatus_to_exitcode(status) % 256))
                    connection.close()
    for pid in waiting:
        os.kill(pid, signal.SIGTERM)


def main() -> None:
    place = Path(sys.argv[1])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(place))
        server.listen()  # who connects while the imports run waits for them
        imported = time.time()
        preload()
        serve(server, imported)


if __name__ == "__main__":
    main()
