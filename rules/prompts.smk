rule build_prompts:
    """Choose the prompts, once per tokenizer: the same texts for all, as far as they fit."""
    output:
        prompts="results/prompts/{tokenizer}.json",
    log:
        "results/logs/build_prompts/{tokenizer}.log",
    params:
        pairs=pairs_of,
        sides=sides_of,
        settings=prompt_settings,
        sources=source_files,
        code=code_digest("scripts.build_prompts"),
    shell:
        'exec python "$SCRIPTS/job.py" build_prompts.py --registry "$REGISTRY" --pairs {params.pairs}'
        " --settings {params.settings:q} --out {output.prompts:q} > {log:q} 2>&1"
