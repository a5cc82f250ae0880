"""The figures: drawn for studies of every size, they say what they show, whole and legibly."""

import importlib
import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from specdec.analysis.figures import speedup_heatmap, style, time_breakdown
from specdec.analysis.tables import load_table, make_tables, write_tables
from specdec.utils.errors import SpecdecError
from specdec.utils.paths import PROJECT_ROOT
from tests.simulated_runs import Truth, simulate_job, simulate_study
from tests.test_tables import cut_to_first_token, edit_records

FIGURES = ["speedup_heatmap", "latency_cdf", "acceptance_by_domain", "acceptance_by_position"]
FIGURES += ["time_breakdown"]
DOMAINS = ["code", "conversation", "summarization"]
TRUTH = Truth(noise=0.05, drift=0.2, alpha_spread=0.07)
LONG = "a_pair_with_a_long_name__draft_0.5b_instruct_to_target_70b_instruct_v2"


def draw(name: str, tables: Path) -> matplotlib.figure.Figure:
    return importlib.import_module(f"specdec.analysis.figures.{name}").draw(tables)


def smallest_study(folder: Path) -> list[Path]:
    return [simulate_job(folder, TRUTH, 1, prompts=1)]


def default_study(folder: Path) -> list[Path]:
    others = [
        replace(TRUTH, pair="micro_other", alpha=0.5),
        replace(TRUTH, pair="micro_int4", c=1.6, draft_dtype="int4"),
    ]
    micro = simulate_study(folder, [TRUTH], DOMAINS, [1, 2, 4, 8], [0.0])
    return micro + simulate_study(folder, others, ["code"], [2, 4], [0.0])


def gpu_study(folder: Path) -> list[Path]:
    names = ["gpt2_dev", "tinyllama_llama3", "phi3_llama3", "llama3_self"]
    pairs = [replace(TRUTH, pair=name, device="NVIDIA H100 80GB HBM3") for name in names]
    return simulate_study(folder, pairs, DOMAINS, [1, 2, 4, 8], [0.0, 0.8], prompts=4)


def odd_study(folder: Path) -> list[Path]:
    """Long names, two devices, forced acceptance, unpaired runs, all rejected, nothing emitted."""
    long = replace(TRUTH, pair=LONG, prompt_source="somebody/her-own-prompts")
    domains = ["code", "a_domain_of_a_long_name_such_as_translation"]
    paths = simulate_study(folder, [long], domains, [1, 16], [0.0], paired=False, prompts=2)
    forced = replace(TRUTH, pair="llama_shape", synthetic_acceptance=0.8, device="NVIDIA H200")
    paths.append(simulate_job(folder, forced, 4, temperature=0.8, prompts=3))
    paths.append(simulate_job(folder, replace(TRUTH, pair="rejected", alpha=0), 3))
    silent = simulate_job(folder, replace(TRUTH, pair="silent"), 4)
    return [*paths, edit_records(silent, cut_to_first_token)]


def engines_of(truth: Truth) -> list[Truth]:
    """The same pair by both engines."""
    slow = replace(truth, engine="eager", engine_requested="eager", c=0.33)
    return [slow, replace(truth, engine="compiled", engine_requested="compiled", step_ms=4)]


def engines_study(folder: Path) -> list[Path]:
    """Two engines side by side, measured and forced; and one that `auto` took."""
    forced = replace(TRUTH, pair="llama_shape", synthetic_acceptance=0.8)
    domains = ["code", "conversation"]
    paths = simulate_study(folder / "a", engines_of(TRUTH), domains, [2, 4], [0.0], prompts=3)
    paths += simulate_study(folder / "b", engines_of(forced), ["code"], [2, 4], [0.0], prompts=3)
    return [*paths, simulate_job(folder, replace(TRUTH, pair="third", engine="compiled"), 4)]


STUDIES = [
    pytest.param(study, id=study.__name__, marks=[pytest.mark.slow] if study == gpu_study else [])
    for study in (smallest_study, default_study, gpu_study, odd_study, engines_study)
]


@pytest.fixture(scope="module")
def tables_of(tmp_path_factory):
    made = {}

    def make(study) -> Path:
        if study not in made:
            made[study] = tmp_path_factory.mktemp(study.__name__)
            write_tables(study(made[study] / "runs"), made[study])
        return made[study]

    return make


def texts_of(figure) -> list[Text]:
    """All texts that are drawn: of an axis without those of ticks outside its limits."""
    of_axes = set()
    drawn = []
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            of_axes.update(axis.findobj(Text))
            if ax.axison:
                low, high = sorted(axis.get_view_interval())
                labels = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
                drawn += [label for place, label in labels if low <= place <= high]
                drawn.append(axis.label)
    drawn += [text for text in figure.findobj(Text) if text not in of_axes]
    return [text for text in drawn if text.get_text().strip() and text.get_visible()]


def words_of(figure) -> str:
    return " ".join(" ".join(text.get_text().split()) for text in texts_of(figure))


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("study", STUDIES)
def test_no_text_is_cut_or_lies_on_another(tables_of, name, study):
    figure = draw(name, tables_of(study))
    FigureCanvasAgg(figure).draw()
    texts = texts_of(figure)
    boxes = [text.get_window_extent() for text in texts]
    page = figure.bbox
    for text, box in zip(texts, boxes, strict=True):
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page.x1 and box.y1 <= page.y1
        assert inside, f"cut: {text.get_text()!r}"
    for (one, box), (other, its_box) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        wide = min(box.x1, its_box.x1) - max(box.x0, its_box.x0)
        high = min(box.y1, its_box.y1) - max(box.y0, its_box.y0)
        assert wide <= 1 or high <= 1.5, f"{one.get_text()!r} lies on {other.get_text()!r}"


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_says_what_was_measured_on_what(tables_of, name):
    words = words_of(draw(name, tables_of(default_study)))
    for fact in (TRUTH.device, "1 thread", "draft bfloat16, target float32", "draft int4"):
        assert fact in words
    assert "Prompts: builtin; n = 10 per cell" in words and "Baseline: paired" in words


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_says_which_instruction_set_ran_and_what_the_weights_are(tmp_path, name):
    def run_on(*sets):
        def change(record):
            record["environment"]["instruction_set"] = sets[record["prompt_id"] == "code_001"]
            record["target_weights"] = "Q4_1 weights widened to bfloat16"

        return change

    for folder, sets in (("one", ("avx2", "avx2")), ("two", ("avx2", "avx512"))):
        path = simulate_job(tmp_path / folder / "runs", TRUTH, 4)
        write_tables([edit_records(path, run_on(*sets))], tmp_path / folder)
    words = words_of(draw(name, tmp_path / "one"))
    assert "(1 thread, AVX2)" in words
    assert "Weights: target: Q4_1 weights widened to bfloat16." in words
    assert "(1 thread, MIXED: AVX2 and AVX-512)" in words_of(draw(name, tmp_path / "two"))


@pytest.mark.parametrize("name", FIGURES)
def test_what_differs_within_a_figure_is_all_listed(tables_of, name):
    words = words_of(draw(name, tables_of(odd_study)))
    for fact in (TRUTH.device, "NVIDIA H200", "builtin, somebody/her-own-prompts", "n = 2 to 10"):
        assert fact in words
    assert "UNPAIRED for a_pair_with" in words
    assert "SYNTHETIC ACCEPTANCE 0.8" in words


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_two_engines_names_both_and_one_of_one_names_none(tables_of, name):
    words = words_of(draw(name, tables_of(engines_study)))
    if name == "time_breakdown":
        assert "K = 4, compiled" in words and "K = 4, eager" in words
    else:
        for heading in ("compiled", "eager"):
            assert f"micro, greedy, {heading}" in words
            assert f"llama_shape, greedy, {heading} SYNTHETIC ACCEPTANCE 0.8" in words
    assert "third, greedy, compiled" in words
    alone = words_of(draw(name, tables_of(default_study)))
    assert "Engine: eager." in alone and "eager" not in alone.replace("Engine: eager.", "")


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_says_where_the_baseline_took_another_engine(tmp_path, name):
    def change(record):
        reason = "a reason" if record["K"] else None
        record.update(engine="eager" if reason else "compiled", engine_reason=reason)

    path = edit_records(simulate_job(tmp_path / "runs", TRUTH, 4), change)
    write_tables([path], tmp_path)
    assert "Engine: eager, its baseline compiled, a reason." in words_of(draw(name, tmp_path))


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_tables_give_the_same_files(tables_of, tmp_path, name):
    for copy in ("one", "other"):
        figure = draw(name, tables_of(smallest_study))
        style.save(figure, tmp_path / f"{copy}.png", tmp_path / f"{copy}.svg")
    for suffix in ("png", "svg"):
        one, other = (tmp_path / f"{copy}.{suffix}" for copy in ("one", "other"))
        assert one.read_bytes() == other.read_bytes()


def test_a_figure_that_cannot_be_written_leaves_the_old_one(tables_of, tmp_path, monkeypatch):
    png, svg = tmp_path / "a.png", tmp_path / "a.svg"
    png.write_text("old")
    figure = draw("speedup_heatmap", tables_of(smallest_study))

    def full_disk(*_args, **_settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full_disk)
    with pytest.raises(OSError):
        style.save(figure, png, svg)
    assert png.read_text() == "old" and list(tmp_path.iterdir()) == [png]


def test_without_a_speculative_run_there_is_nothing_to_draw(tmp_path):
    write_tables([simulate_job(tmp_path / "runs", TRUTH, 0)], tmp_path)
    for name in FIGURES:
        with pytest.raises(SpecdecError, match="nothing to draw"):
            draw(name, tmp_path)


# The heatmap


def test_the_heatmap_shows_the_cells_of_the_table(tables_of):
    words = words_of(draw("speedup_heatmap", tables_of(default_study)))
    for cell in load_table(tables_of(default_study), "cells").itertuples():
        ends = (cell.S_best_low, cell.S_best_high) if cell.best else (cell.S_low, cell.S_high)
        assert "{:.2f}× [{:.2f}, {:.2f}]".format(cell.S, *ends) in words


def heatmap_of(tmp_path, **changes) -> tuple[list[Rectangle], pd.DataFrame]:
    """The heatmap's rectangles, and the cells, whose columns `changes` replace."""
    paths = simulate_study(tmp_path / "runs", [TRUTH], ["code"], [1, 2, 4], [0.0])
    write_tables(paths, tmp_path)
    cells = load_table(tmp_path, "cells").assign(**changes)
    cells.to_csv(tmp_path / "cells.csv", index=False)
    panel = speedup_heatmap.draw(tmp_path).axes[0]
    return [patch for patch in panel.patches if isinstance(patch, Rectangle)], cells


def test_hatched_are_the_cells_whose_interval_holds_one(tmp_path):
    ends = {"S_low": [0.9, 1.01, 0.8], "S_high": [1.2, 1.3, 0.99]}
    patches, _ = heatmap_of(tmp_path / "a", **ends, best=False)
    assert [patch.get_x() for patch in patches if patch.get_hatch()] == [0]
    # Of the outlined one, the interval that knows that it was chosen.
    ends |= {"S_best_low": 0.98, "S_best_high": 1.4, "best": [False, True, False]}
    patches, _ = heatmap_of(tmp_path / "b", **ends)
    assert [patch.get_x() for patch in patches if patch.get_hatch()] == [0, 1]


def test_outlined_is_the_best_k(tmp_path):
    patches, _ = heatmap_of(tmp_path, best=[False, True, False])
    black = [p for p in patches if p.get_edgecolor()[:3] == (0, 0, 0) and not p.get_fill()]
    assert [patch.get_x() for patch in black] == [1]


def test_colours_are_centred_at_one_and_double_and_half_are_equally_far(tmp_path):
    patches, _ = heatmap_of(tmp_path, S=[0.5, 1.0, 2.0], S_low=[0.4, 1, 1.5], S_high=[0.6, 1, 3])
    faces = [patch.get_facecolor() for patch in patches if patch.get_fill()]
    colours = matplotlib.colormaps["PuOr"]
    np.testing.assert_allclose(faces, [colours(0.0), colours(0.5), colours(1.0)], atol=0.02)


def test_pairs_stand_in_the_studys_order(tables_of):
    """Others behind them, by name."""
    figure = speedup_heatmap.draw(tables_of(default_study), ["micro_other", "micro"])
    headings = [text.get_text() for text in texts_of(figure) if "greedy" in text.get_text()]
    assert headings == ["micro_other, greedy", "micro, greedy", "micro_int4, greedy"]


def test_panels_of_one_cell_stand_side_by_side_and_fill_the_width(tmp_path):
    pairs = [replace(TRUTH, pair=name) for name in ("a", "b", "c")]
    write_tables([simulate_job(tmp_path / "runs", pair, 4) for pair in pairs], tmp_path)
    figure = speedup_heatmap.draw(tmp_path)
    FigureCanvasAgg(figure).draw()
    panels = figure.axes[:3]
    assert len({round(ax.get_position().y0, 3) for ax in panels}) == 1
    cells = [ax.patches[0].get_window_extent() for ax in panels]
    assert sum(cell.width for cell in cells) > 0.6 * figure.bbox.width


def test_a_cell_whose_output_is_not_the_baselines_is_marked(tmp_path):
    def change(record):
        if record["K"] and record["prompt_id"] in ("code_001", "code_002"):
            record["generated_ids"][3] += 1

    write_tables([edit_records(simulate_job(tmp_path / "runs", TRUTH, 4), change)], tmp_path)
    words = words_of(draw("speedup_heatmap", tmp_path))
    assert "≠ 2" in words and "promises its tokens" in words
    write_tables([simulate_job(tmp_path / "whole", TRUTH, 4)], tmp_path)
    assert "≠" not in words_of(draw("speedup_heatmap", tmp_path))


@pytest.mark.parametrize("name", FIGURES)
def test_a_study_without_any_speedup_says_why_its_figures_are_empty(tmp_path, name):
    """All texts ended with their first token, as with a budget of 1: the heatmap failed on NaN."""
    path = edit_records(simulate_job(tmp_path / "runs", TRUTH, 4), cut_to_first_token)
    write_tables([path], tmp_path)
    figure = draw(name, tmp_path)
    style.save(figure, tmp_path / "a.png", tmp_path / "a.svg")
    assert "no token after the first" in words_of(figure)


@pytest.mark.parametrize("name", ["speedup_heatmap", "time_breakdown"])
def test_a_cell_without_a_baseline_says_so(tmp_path, name):
    write_tables([simulate_job(tmp_path / "runs", TRUTH, 4, paired=False)], tmp_path)
    assert "no baseline" in words_of(draw(name, tmp_path))


# The others


def test_below_ten_prompts_there_is_no_box(tmp_path):
    for prompts, boxes in ((9, 0), (10, 1)):
        folder = tmp_path / str(prompts)
        write_tables([simulate_job(folder / "runs", TRUTH, 4, prompts=prompts)], folder)
        assert len(draw("acceptance_by_domain", folder).axes[0].patches) == boxes


def test_a_figures_job_loads_no_torch(tables_of, tmp_path):
    """Five figures started Python five times and loaded torch each time: 15 to 25 s each."""
    arguments = [*FIGURES, "--tables", str(tables_of(smallest_study))]
    for kind in ("png", "svg"):
        arguments += [f"--{kind}", *(str(tmp_path / f"{name}.{kind}") for name in FIGURES)]
    script = PROJECT_ROOT / "scripts" / "plot_figure.py"
    code = (
        f"import runpy, sys; sys.argv = {[str(script), *arguments]!r}\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as done: assert not done.code, done\n"
        "import specdec.analysis.tables\n"
        "print([name for name in ('torch', 'transformers', 'seaborn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
    assert len(list(tmp_path.glob("*.png"))) == len(list(tmp_path.glob("*.svg"))) == len(FIGURES)


def test_the_phases_of_a_token_add_up_to_its_time(tmp_path):
    rows = make_tables([simulate_job(tmp_path, TRUTH, 4)]).generations
    ours = rows[rows.K == 4]
    parts = time_breakdown.per_token_ms(ours)
    assert list(parts) == ["draft", "verify", "sampling", "other"]
    whole = ours.decode_s.sum() * 1e3 / (ours.num_tokens - 1).sum()
    assert sum(parts.values()) == pytest.approx(whole)
    untimed = ours.assign(draft_ms=np.nan, verify_ms=np.nan, sample_ms=np.nan)
    assert time_breakdown.per_token_ms(untimed)["other"] == pytest.approx(whole)


def test_each_k_stands_beside_the_baseline_that_was_measured_along_with_it(tmp_path):
    """One baseline of all jobs together showed a slowdown where the table said S = 1.15."""
    paths = [simulate_job(tmp_path / "runs", Truth(step_ms=10 * k or 1), k) for k in (0, 2, 4)]
    write_tables(paths, tmp_path)
    (shown,) = [ax for ax in time_breakdown.draw(tmp_path).axes if ax.texts]
    assert [label.get_text() for label in shown.get_yticklabels()] == [
        *("K = 2", "baseline", "K = 4", "baseline")
    ]
    said = [text.get_text() for text in shown.texts if "greedy" not in text.get_text()]
    assert (said[1], said[3]) == ("20.4", "40.8")
    left = draw("latency_cdf", tmp_path).axes[0]
    dashed = [line.get_xdata().max() for line in left.lines if line.get_linestyle() == "--"]
    assert dashed == pytest.approx([20.4, 40.8])


def test_an_unpaired_k_stands_beside_the_baselines_own_job(tmp_path):
    paths = [simulate_job(tmp_path / "runs", Truth(), k, paired=False) for k in (0, 4)]
    write_tables(paths, tmp_path)
    said = [text.get_text() for text in time_breakdown.draw(tmp_path).axes[0].texts]
    assert "10.2" in said


def test_the_breakdown_shows_c_of_each_engine(tmp_path):
    paths = simulate_study(tmp_path / "runs", engines_of(Truth(step_ms=10)), ["code"], [4], [0.0])
    write_tables(paths, tmp_path)
    figure = time_breakdown.draw(tmp_path)
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert [text for text in shown if text.startswith("c = ")] == ["c = 0.10", "c = 0.33"]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["K = 4, compiled", "baseline", "K = 4, eager", "baseline"]


def test_long_names_break_where_they_are_joined():
    assert style.wrap("tiny_llama to llama-3", 8) == "tiny_\nllama to\nllama-3"
    assert style.wrap("abcdefghij", 4) == "abcd\nefgh\nij"
    assert style.wrap("short", 10) == "short"
