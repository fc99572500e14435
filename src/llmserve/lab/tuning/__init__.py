"""Tune a live server without a restart: propose by simulation, race live, confirm."""
