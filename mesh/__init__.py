"""What every peer is and shares: identity, messages, transport, links, registry, HTTP and the OpenAI types."""

DISTRIBUTION = "infermesh"
"""Marks the package as ours: `mesh.runtime.check_installation` looks for it, because the names `mesh` and `node` are easy to collide with."""
