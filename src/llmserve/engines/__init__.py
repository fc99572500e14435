"""The engines, and the seam behind which they differ (`base.py`)."""
