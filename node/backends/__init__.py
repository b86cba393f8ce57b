"""What a node runs models with. Every backend is an `InferenceService` with a life and a state."""
