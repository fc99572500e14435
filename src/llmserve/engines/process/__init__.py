"""Child processes of an engine: start, messages, delivery, end."""
