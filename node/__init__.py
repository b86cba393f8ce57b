"""What runs models: the supervisor, the backends, the link service and the node's own HTTP ports."""

DISTRIBUTION = "infermesh"
