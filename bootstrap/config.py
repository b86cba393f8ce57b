"""What `mesh-bootstrap` can be told."""

from __future__ import annotations

from typing import Annotated

import msgspec

from mesh.config import CommonConfig, Option
from mesh.config.addresses import check_listen_address


class BootstrapConfig(CommonConfig, frozen=True, kw_only=True):
    """A bootstrap peer is found at a known address, so its port is fixed."""

    listen: Annotated[
        list[str],
        Option(help="Where other peers reach this one; port 0 means a free one.", metavar="ADDR", check=check_listen_address),
    ] = msgspec.field(default_factory=lambda: ["/ip4/0.0.0.0/tcp/4001"])
