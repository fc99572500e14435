"""The lab: questions about serving that are answered without a server."""
