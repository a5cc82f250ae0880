rule plot_speedup_heatmap:
    """Draw the speedup of each cell, with its interval."""
    input:
        tables=TABLES,
    output:
        png=report(
            "figures/speedup_heatmap.png",
            caption="../report/speedup_heatmap.rst",
            category="Speedup",
        ),
        svg="figures/speedup_heatmap.svg",
    log:
        "results/logs/plot_speedup_heatmap.log",
    params:
        code=code_digest("specdec.analysis.figures.speedup_heatmap"),
    shell:
        'exec python "$SCRIPTS/plot_figure.py" speedup_heatmap --tables results/tables'
        " --png {output.png} --svg {output.svg} > {log} 2>&1"


rule plot_latency_cdf:
    """Draw how long a reader waits: time between hand-overs, and time per token."""
    input:
        tables=TABLES,
    output:
        png=report("figures/latency_cdf.png", caption="../report/latency_cdf.rst", category="Time"),
        svg="figures/latency_cdf.svg",
    log:
        "results/logs/plot_latency_cdf.log",
    params:
        code=code_digest("specdec.analysis.figures.latency_cdf"),
    shell:
        'exec python "$SCRIPTS/plot_figure.py" latency_cdf --tables results/tables'
        " --png {output.png} --svg {output.svg} > {log} 2>&1"


rule plot_time_breakdown:
    """Draw where the time of an emitted token goes."""
    input:
        tables=TABLES,
    output:
        png=report(
            "figures/time_breakdown.png", caption="../report/time_breakdown.rst", category="Time"
        ),
        svg="figures/time_breakdown.svg",
    log:
        "results/logs/plot_time_breakdown.log",
    params:
        code=code_digest("specdec.analysis.figures.time_breakdown"),
    shell:
        'exec python "$SCRIPTS/plot_figure.py" time_breakdown --tables results/tables'
        " --png {output.png} --svg {output.svg} > {log} 2>&1"


rule plot_acceptance_by_domain:
    """Draw how acceptance varies over prompts, by domain."""
    input:
        tables=TABLES,
    output:
        png=report(
            "figures/acceptance_by_domain.png",
            caption="../report/acceptance_by_domain.rst",
            category="Acceptance",
        ),
        svg="figures/acceptance_by_domain.svg",
    log:
        "results/logs/plot_acceptance_by_domain.log",
    params:
        code=code_digest("specdec.analysis.figures.acceptance_by_domain"),
    shell:
        'exec python "$SCRIPTS/plot_figure.py" acceptance_by_domain --tables results/tables'
        " --png {output.png} --svg {output.svg} > {log} 2>&1"


rule plot_acceptance_by_position:
    """Draw acceptance at each draft position."""
    input:
        tables=TABLES,
    output:
        png=report(
            "figures/acceptance_by_position.png",
            caption="../report/acceptance_by_position.rst",
            category="Acceptance",
        ),
        svg="figures/acceptance_by_position.svg",
    log:
        "results/logs/plot_acceptance_by_position.log",
    params:
        code=code_digest("specdec.analysis.figures.acceptance_by_position"),
    shell:
        'exec python "$SCRIPTS/plot_figure.py" acceptance_by_position --tables results/tables'
        " --png {output.png} --svg {output.svg} > {log} 2>&1"
