rule decode:
    """Decode a domain's prompts with a pair, at one K and temperature, by one engine, timed."""
    input:
        prompts=prompts_of,
    output:
        records=f"results/runs/{CELL}.jsonl",
    log:
        f"results/logs/decode/{CELL}.log",
    threads: workflow.cores  # a timed job shares the machine with nothing
    resources:
        gpu=1,
    params:
        # Finished generations wait here, undeclared: Snakemake deletes a failed job's output.
        progress=progress_of,
        settings=decode_settings,
        entry=pair_entry,
        weights=pair_weights,
        code=code_digest("specdec.study.job"),
    shell:
        'exec python "$SCRIPTS/job.py" decode.py --stop-with-parent'
        ' --pair {wildcards.pair} --registry "$REGISTRY" --prompts {input.prompts:q}'
        " --domain {wildcards.domain} --k {wildcards.k} --temperature {wildcards.temperature}"
        " --engine {wildcards.engine}"
        " --settings {params.settings:q} --progress {params.progress:q}"
        " --out {output.records:q} > {log:q} 2>&1"
