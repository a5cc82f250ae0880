"""The study's configuration, checked before anything runs: what is wrong is one line."""

import os
import sys
from pathlib import Path

# This checkout's package and this interpreter, here and in every job. Where things lie goes to the
# jobs by their environment: their parameters hold what decides on a result, and nothing else.
sys.path.insert(0, workflow.basedir)
os.environ.update(
    PYTHONPATH=os.pathsep.join(filter(None, [workflow.basedir, os.getenv("PYTHONPATH")])),
    PATH=os.pathsep.join([os.path.dirname(sys.executable), os.getenv("PATH", os.defpath)]),
    SCRIPTS=os.path.join(workflow.basedir, "scripts"),
)

from specdec.models.loading.hub import resolve_model
from specdec.study.configuration import StudyError, study_pairs, registry_path
from specdec.utils.errors import SpecdecError
from specdec.utils.files import check_writable
from specdec.utils.paths import PROJECT_ROOT
from specdec.utils.yaml_reader import read_yaml

# On a cluster, the machine that hands out jobs need not have what its nodes have.
JOBS_RUN_HERE = not any(option in sys.argv for option in ("--executor", "-e", "--profile"))


def place(key):
    """The configuration file that decides on a key, for people."""
    if key in dict(workflow.config_settings.config):
        return "--config"
    overlays = len(workflow.overwrite_configfiles)
    files = workflow.configfiles[overlays:] + workflow.configfiles[:overlays]
    deciding = [file for file in files if key in (read_yaml(file) or {})]
    return os.path.relpath((deciding or files)[-1])


try:
    for file in workflow.configfiles:
        read_yaml(os.path.relpath(file))  # what this reader refuses, Snakemake's own took somehow
    for folder in (".snakemake", "results", "figures"):
        check_writable(folder)
    PAIRS = study_pairs(config, JOBS_RUN_HERE)
except StudyError as error:
    sys.exit(f"error: {place(error.key)}: {error}")
except SpecdecError as error:
    sys.exit(f"error: {error}")

REGISTRY = registry_path(config)
os.environ.update(REGISTRY=REGISTRY)
