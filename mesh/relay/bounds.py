"""What a relay does for others at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RelayBounds:
    """Sizes in bytes, times in seconds. `rate` holds for each direction of a circuit, `total` for a pair of peers in `window`."""

    reservations: int = 256
    circuits: int = 128
    circuits_per_peer: int = 32
    rate: int = 2_000_000
    total: int = 1_000_000_000
    window: float = 3_600.0
    idle: float = 30.0
    setup: float = 4.0
    """From a wish to be joined until the other half is there. A dial as a whole has five seconds."""
