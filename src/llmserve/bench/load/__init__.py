"""What arrives, and when."""
