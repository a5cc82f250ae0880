"""Examines a pair on this machine: the acceptance rule, greedy output, sampled output."""
