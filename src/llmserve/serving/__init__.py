"""The serving loop: one service, its requests, and the thread it runs in."""
