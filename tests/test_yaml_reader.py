"""Reading YAML: what two versions of it read differently is refused, with its line."""

import pytest

from specdec.utils.errors import SpecdecError
from specdec.utils.yaml_reader import read_yaml

REFUSED = {
    "octal": (
        "a: 1\nb: 010",
        "line 2: 010 is 8 in YAML 1.1 and 10 in YAML 1.2: write a number as 10",
    ),
    "new octal": ("a: 0o17", "line 1: 0o17 is '0o17' in YAML 1.1 and 15 in YAML 1.2"),
    "no point": ("a: [0, 1e300]", "line 1: 1e300 .* write a number as 1.0e[+]300 .with a point."),
    "small": ("a: 2e-3", "write a number as 0.002 "),
    "sixties": ("a: 1:30", "line 1: 1:30 is 90 in YAML 1.1"),
    "key twice": ("a: 1\nb: 2\na: 3", "line 3: 'a' is there already, in line 1"),
    "key twice inside": (
        "a: {x: 1}\nb:\n  c: 1\n  c: 1",
        "line 4: 'c' is there already, in line 3",
    ),
    "torn": ("a: 1\nb: [2", "line 2: not YAML"),
    "tab": ("a:\n\tb: 1", "line 2: not YAML"),
    "binary": (b"a: \xff\x00", "not YAML: no text in UTF-8"),
    "control": (b"a: \x00", "not YAML"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_read_in_two_ways_or_not_at_all_is_one_line(tmp_path, content, message):
    path = tmp_path / "study.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpecdecError, match=f"study.yaml.*{message}") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_what_every_reader_reads_alike_is_read(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "{a: 10, b: -1.5, c: 1.0e+3, d: '010', e: \"1e3\", f: .inf, g: yes, h: 0x1F, i: v1.0, "
        "j: 2024-01-01, k: main, l: null, m: {a: 10}}"
    )
    read = read_yaml(path)
    assert read | {"j": None} == {
        "a": 10,
        "b": -1.5,
        "c": 1000.0,
        "d": "010",
        "e": "1e3",
        "f": float("inf"),
        "g": True,
        "h": 31,
        "i": "v1.0",
        "j": None,
        "k": "main",
        "l": None,
        "m": {"a": 10},
    }


def test_an_empty_file_holds_nothing_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") is None
    with pytest.raises(SpecdecError, match="gone.yaml: cannot read the registry .No such file"):
        read_yaml(tmp_path / "gone.yaml", "the registry")
