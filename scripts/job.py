"""Run a script as a job of the study: by the study's job server if there is one, else by itself.

python scripts/job.py SCRIPT ARGUMENTS…
"""

import json
import os
import selectors
import socket
import sys
from pathlib import Path

SERVER = "SPECDEC_JOB_SERVER"  # in the environment: the socket of job_server.py
OUTDATED = b"outdated"  # the server's answer where the package was edited since it began
SECONDS = 1  # between two looks at whether anybody waits for the job


def main() -> None:
    script, *arguments = sys.argv[1:]
    command = [str(Path(__file__).with_name(script)), *arguments]
    answer = ask_server(command) if SERVER in os.environ else OUTDATED
    if answer == OUTDATED:
        os.execv(sys.executable, [sys.executable, *command])
    if not answer:
        sys.exit("error: the study's job server is gone; start the study again")
    sys.exit(int(answer))


def ask_server(command: list[str]) -> bytes:
    """Have the server run a job; its exit code in digits, or `OUTDATED`, or nothing."""
    parent = os.getppid()
    job = {"command": command, "folder": os.getcwd(), "environment": dict(os.environ)}
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server,
        selectors.DefaultSelector() as selector,
    ):
        server.connect(os.environ[SERVER])
        socket.send_fds(server, [json.dumps(job).encode()], [1, 2])
        selector.register(server, selectors.EVENT_READ)
        while not selector.select(SECONDS):
            if os.getppid() != parent:
                sys.exit("error: the workflow that started this job is gone; start it again")
        return server.recv(16)


if __name__ == "__main__":
    main()
