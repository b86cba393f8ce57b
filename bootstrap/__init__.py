"""The way in: the bootstrap peer, the operator's `mesh` command and the one-command local mesh."""

DISTRIBUTION = "infermesh"
