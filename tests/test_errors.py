"""A command ends in one line and an exit code, whatever went wrong."""

import errno

import pytest

from specdec.utils.errors import SpecdecError, cli

FAILURES = [
    # what is raised, exit code, what the line must say
    (SpecdecError("config/x.yaml: K: 0 is below 1"), 2, "error: config/x.yaml: K: 0 is below 1"),
    (SpecdecError("two\nlines"), 2, "error: two lines"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nSee docs"), 2, "smaller pair"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), 2, "out of memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "out of memory"),
    (MemoryError(), 2, "out of memory: the host has none left"),
    (OSError(errno.ENOSPC, "No space left on device", "a/b"), 2, "while writing a/b"),
    (OSError(errno.ENOSPC, "No space left on device"), 2, "no space left on the disk: free"),
    (OSError(errno.EACCES, "Permission denied", "a"), 1, "PermissionError"),
    (RuntimeError("shapes differ"), 1, "error: RuntimeError: shapes differ"),
    (KeyError("prompt_id"), 1, "KeyError: 'prompt_id' (set SPECDEC_TRACEBACK=1"),
    (KeyboardInterrupt(), 130, "interrupted"),
]


def run(main) -> int:
    with pytest.raises(SystemExit) as ended:
        cli(main)
    return ended.value.code


def fail_with(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize("error, code, says", FAILURES, ids=lambda value: str(value)[:30])
def test_a_failure_is_one_line_on_stderr_and_an_exit_code(error, code, says, capsys, monkeypatch):
    monkeypatch.delenv("SPECDEC_TRACEBACK", raising=False)
    assert run(fail_with(error)) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert says in printed.err
    assert printed.err.count("\n") == 1


def test_the_traceback_is_there_for_whoever_asks(capsys, monkeypatch):
    monkeypatch.setenv("SPECDEC_TRACEBACK", "1")
    assert run(fail_with(SpecdecError("no such pair"))) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.endswith("error: no such pair\n")


def test_a_command_that_ends_well_has_exit_code_0():
    assert run(lambda: None) == 0


def test_a_command_may_return_its_exit_code():
    assert run(lambda: 3) == 3


def test_the_exit_code_of_argparse_passes_through():
    def main() -> None:
        raise SystemExit(2)

    assert run(main) == 2
