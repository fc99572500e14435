"""A step on a CPU in kernels of our own, compiled by numba."""
