from specdec.models.loading.loader import *  # noqa: F403  (the module's old name)
from specdec.models.loading.loader import cli, main

if __name__ == "__main__":
    cli(main)
