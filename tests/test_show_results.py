"""What a study says at its end."""

import subprocess
import sys

from specdec.analysis.tables import write_tables
from specdec.utils.paths import PROJECT_ROOT
from specdec.utils.table import aligned, markdown
from tests.simulated_runs import Truth, simulate_job, simulate_study
from tests.test_tables import cut_to_first_token, edit_records


def shown(folder, paths) -> str:
    write_tables(paths, folder / "results" / "tables")
    command = [sys.executable, PROJECT_ROOT / "scripts" / "show_results.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_outputs_that_are_not_the_baselines_are_said_at_the_end(tmp_path):
    """`identical` was 0 in cells.csv, and nobody said it."""

    def change(record):
        if record["K"]:
            record["generated_ids"][7] += 1

    runs = [edit_records(simulate_job(tmp_path / "a", Truth(), 4), change)]
    runs.append(
        edit_records(simulate_job(tmp_path / "b", Truth(pair="silent"), 2), cut_to_first_token)
    )
    said = shown(tmp_path, runs)
    assert "NOT THE BASELINE'S OUTPUT: micro, code, T = 0, K = 4, eager: 10 of 10 prompts" in said
    assert "verified by greedy" in said
    assert "no S: silent, code, T = 0, K = 2: no token after the first" in said


def test_a_study_where_all_is_well_says_its_cells_alone(tmp_path):
    said = shown(tmp_path, simulate_study(tmp_path, [Truth(alpha=0.9)], ["code"], [2, 4], [0.0]))
    lines = said.strip().splitlines()
    assert lines[0].split()[:7] == ["pair", "domain", "T", "K", "engine", "n", "S"]
    assert sum("*" in line.split()[6] for line in lines[1:3]) == 1
    assert "NOT THE" not in said and "no S" not in said and "unpaired" not in said


def test_one_printer_serves_terminal_and_page():
    rows = [["pair", "S"], ["micro", 1.25], ["b", 10]]
    assert aligned(rows) == "pair      S\nmicro  1.25\nb        10"
    assert markdown(rows) == "| pair | S |\n|---|---|\n| micro | 1.25 |\n| b | 10 |"
