"""Whether a peer can be dialled: `dial_back` tries it for others, `reachability` asks them."""

from mesh.reachability.dial_back import DialBacks
from mesh.reachability.reachability import Reachability, Verdict

__all__ = ["DialBacks", "Reachability", "Verdict"]
