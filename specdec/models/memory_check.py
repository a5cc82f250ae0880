from specdec.models.loading.memory_check import *  # noqa: F403  (the module's old name)
