"""What-if: predictions of a calibrated server, each beside its error on held-out traffic."""
