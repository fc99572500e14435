"""What may be called, how a model writes a call, and the calls read from a reply."""
