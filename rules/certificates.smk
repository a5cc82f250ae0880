rule certificates:
    """Examine every pair of the study: is what it emits what its target emits?"""
    input:
        [f"results/certificates/{pair}.json" for pair in PAIRS],


rule certify:
    """Examine a pair on the study's prompts; a defect fails the job, and its log holds the page."""
    input:
        prompts=prompts_of,
    output:
        certificate="results/certificates/{pair}.json",
        page="results/certificates/{pair}.md",
    log:
        "results/logs/certify/{pair}.log",
    resources:
        gpu=1,
    params:
        device=config["device"],
        entry=pair_entry,
        weights=pair_weights,
        code=code_digest("specdec.commands.certify"),
    shell:
        'exec python -m specdec certify --pair {wildcards.pair} --registry "$REGISTRY"'
        " --prompts {input.prompts:q} --device {params.device} > {log:q} 2>&1"
