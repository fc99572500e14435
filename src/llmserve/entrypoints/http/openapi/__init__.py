"""The API described by itself: /openapi.json and a page of it."""
