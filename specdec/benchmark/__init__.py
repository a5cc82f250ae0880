"""The benchmark: what a pair costs on this machine, beside what its bytes allow."""
