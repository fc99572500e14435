"""The faces of a session: Python, HTTP, magics, command line."""
