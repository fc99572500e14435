"""Sending a load: drivers, clients, processes, repeats."""
