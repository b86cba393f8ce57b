"""One schema for flags, environment and file: flags > environment > file > default, for every key.

`schema` reads a struct's keys, `sources` and `file` collect what each source gave, `positions` finds lines, `values` converts it
and says what is valid, `help` prints, `addresses` checks multiaddrs, `common` holds the keys that all roles share.
"""

from mesh.config.common import CommonConfig
from mesh.config.load import load
from mesh.config.schema import Option

__all__ = ["CommonConfig", "Option", "load"]
