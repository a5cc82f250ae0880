from specdec.models.loading.random_weights import *  # noqa: F403  (the module's old name)
