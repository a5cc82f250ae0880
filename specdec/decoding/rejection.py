from specdec.method.rule import *  # noqa: F403  (the module's old name)
