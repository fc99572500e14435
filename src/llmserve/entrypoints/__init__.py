"""The entry points of a session: Python, HTTP, magics, command line."""
