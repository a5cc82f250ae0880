"""A rule for each figure: one is drawn alone where it alone is asked for, or alone has changed."""

for figure, category in FIGURE_CATEGORIES.items():

    rule:
        name:
            f"plot_{figure}"
        input:
            tables=TABLES,
        output:
            png=report(
                f"figures/{figure}.png", caption=f"../report/{figure}.rst", category=category
            ),
            svg=f"figures/{figure}.svg",
        log:
            f"results/logs/plot_{figure}.log",
        params:
            figure=figure,
            pairs=list(PAIRS),  # in the study's order
            code=code_digest(f"specdec.analysis.figures.{figure}"),
        shell:
            'exec python "$SCRIPTS/job.py" plot_figure.py {params.figure} --tables results/tables'
            " --png {output.png} --svg {output.svg} --pairs {params.pairs:q} > {log} 2>&1"
