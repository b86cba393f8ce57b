"""`python -m node` is `mesh-node`."""

from node.cli import main

main()
