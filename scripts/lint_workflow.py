"""Run `snakemake --lint` and fail on anything but rules that name no conda environment.

All rules share the one environment that Snakemake itself runs in: environment.yml.
"""

import re
import subprocess
import sys
from pathlib import Path

ACCEPTED = "Specify a conda environment or container for each rule."
LINT = re.compile(r"^    \* (.*):$", re.MULTILINE)


def main() -> None:
    snakemake = Path(sys.executable).with_name("snakemake")
    linted = subprocess.run([snakemake, "--lint"], capture_output=True, text=True)
    titles = set(LINT.findall(linted.stderr + linted.stdout))
    if not titles and linted.returncode:
        sys.exit(f"error: snakemake --lint failed: {linted.stderr}")
    sys.exit("\n".join(sorted(titles - {ACCEPTED})) or 0)


if __name__ == "__main__":
    main()
