"""The HTTP face: OpenAI's API, and llmserve's own routes, over one `Service`."""
