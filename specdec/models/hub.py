from specdec.models.loading.hub import *  # noqa: F403  (the module's old name)
