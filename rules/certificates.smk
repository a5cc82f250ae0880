rule certificates:
    """Examine every pair of the study: is what it emits what its target emits?"""
    input:
        [
            f"results/certificates/{name}_{engine}.json"
            for name, pair in PAIRS.items()
            for engine in pair.engines
            if pair.synthetic_acceptance is None  # else nothing real is emitted
        ],


rule certify:
    """Examine a pair on the study's prompts; a defect fails the job, whose log holds the page."""
    input:
        prompts=prompts_of,
    output:
        certificate="results/certificates/{pair}_{engine}.json",
        page="results/certificates/{pair}_{engine}.md",
    log:
        "results/logs/certify/{pair}_{engine}.log",
    resources:
        gpu=1,
    params:
        device=config["device"],
        threads=config["threads"],
        entry=pair_entry,
        weights=pair_weights,
        code=code_digest("specdec.commands.certify"),
    shell:
        'exec python -m specdec certify --pair {wildcards.pair} --registry "$REGISTRY"'
        " --prompts {input.prompts:q} --device {params.device} --threads {params.threads}"
        " --engine {wildcards.engine} > {log:q} 2>&1"
