"""The mathematics of the method, on tensors alone: warps, noise, the acceptance rule."""
