"""A causal language model, read, proven right and run flat."""
