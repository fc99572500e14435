"""The engines, and the protocols that each satisfies (`base.py`)."""
