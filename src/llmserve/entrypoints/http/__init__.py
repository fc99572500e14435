"""The HTTP entry point: OpenAI's API, and llmserve's own routes, over one `Service`."""
