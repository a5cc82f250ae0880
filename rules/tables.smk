rule make_tables:
    """Gather all records into tidy tables: generations, cells, positions, rounds."""
    input:
        runs=RUNS,
    output:
        generations=report(
            "results/tables/generations.csv",
            caption="../report/generations.rst",
            category="Tables",
        ),
        cells=report("results/tables/cells.csv", caption="../report/cells.rst", category="Tables"),
        positions=report(
            "results/tables/positions.csv", caption="../report/positions.rst", category="Tables"
        ),
        rounds="results/tables/rounds.csv.gz",
    log:
        "results/logs/make_tables.log",
    params:
        code=code_digest("specdec.analysis.tables"),
    shell:
        'exec python "$SCRIPTS/job.py" make_tables.py --out results/tables {input.runs:q} > {log} 2>&1'
