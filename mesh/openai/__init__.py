"""OpenAI's API: its types, how they become requests of ours, and the routes that serve it."""
