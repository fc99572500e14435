"""The torch engine's KV memory: its slots and its budget."""
