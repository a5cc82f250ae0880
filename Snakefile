"""Does speculative decoding pay on this machine? prompts → decode → tables → figures."""

import os

from snakemake.utils import min_version

min_version("9.19")


# The project's study; below it the folder's own, then what `--configfile` names.
configfile: os.path.join(workflow.basedir, "config/config.yaml")


if os.path.exists("config/config.yaml"):

    configfile: "config/config.yaml"


report: "report/workflow.rst"


include: "rules/config.smk"
include: "rules/common.smk"
include: "rules/resume.smk"
include: "rules/prompts.smk"
include: "rules/decode.smk"
include: "rules/tables.smk"
include: "rules/figures.smk"
include: "rules/certificates.smk"


rule all:
    """Every cell of the study decoded, its tables, its figures."""
    default_target: True
    input:
        TABLES,
        FIGURES,


onerror:
    print_causes()
