"""Embeddings: from a model directory to vectors, beside the engine or instead of it."""
