"""Guided decoding without a model: grammars, schemas closed to names, and the shortest way out."""
