"""Calibrate: the times of a simulation, fitted to what a live engine's steps took."""
