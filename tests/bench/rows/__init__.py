"""A decode step by kernels of our own, measured: not yet a part of the engine."""
