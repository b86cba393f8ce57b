"""What lets clients in: HTTP and WebSocket routes, routing, dispatch."""

DISTRIBUTION = "infermesh"
