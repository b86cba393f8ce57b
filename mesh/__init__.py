"""What every peer is and shares: identity, messages, transport, links, registry, HTTP and the OpenAI types."""

DISTRIBUTION = "infermesh"
"""Marks the package as ours, because the names `mesh` and `node` are easy to collide with; checked at every start."""
