"""A session: a server in this process, what it holds and gives back."""
