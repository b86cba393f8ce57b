"""How bytes travel between peers: `base` is the interface, `libp2p` the network, `memory` the one that tests use."""
