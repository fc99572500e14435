"""The simulator: a step planner whose step times are a model."""
