"""The schema of `mesh-gateway`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - the schema is read at run time
from typing import Annotated

import msgspec

from gateway.routing.plugins import policy_named, strategies
from gateway.routing.policies import DEFAULT_POLICY
from mesh.addresses import is_loopback_host
from mesh.best_links import LINKS_PER_MODEL
from mesh.config import CommonConfig, Option
from mesh.errors import Misconfigured

_Seconds = Annotated[float, msgspec.Meta(ge=0)]


def _check_strategy(name: str) -> None:
    try:
        policy_named(name)
    except Misconfigured as error:
        raise ValueError(error.message) from error


class GatewayConfig(CommonConfig, frozen=True, kw_only=True):
    """What `mesh-gateway` takes."""

    host: Annotated[
        str,
        Option(
            help="Address of the HTTP port; others than loopback need --api-keys or --insecure.",
            environment=("HF_SERVER_HOST", "HOST"),
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        msgspec.Meta(ge=0, le=65535),
        Option(help="HTTP port; 0 means a free one.", environment=("HF_SERVER_PORT", "PORT")),
    ] = 8000
    registry_port: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=65535)] | None,
        Option(help="One more port, for the registry's endpoints alone; 0 means a free one.", default_help="none"),
    ] = None
    insecure: Annotated[bool, Option(help="Let everybody who reaches --host use the mesh, without a key.")] = False
    api_keys: Annotated[
        Path | None,
        Option(help="A TOML file of the keys that clients must show: [[key]] with name, hash and scopes.", metavar="FILE"),
    ] = None
    strategy: Annotated[
        str,
        Option(
            help=f"How nodes are chosen: {', '.join(strategies())}.",
            environment=("LOAD_BALANCING_STRATEGY",),
            metavar="NAME",
            check=_check_strategy,
        ),
    ] = DEFAULT_POLICY
    links_per_model: Annotated[
        int,
        msgspec.Meta(ge=1, le=1024),
        Option(help="Nodes of one model that are linked at most: the best ones.", metavar="K"),
    ] = LINKS_PER_MODEL
    max_requests: Annotated[
        int, msgspec.Meta(ge=1), Option(help="Requests under way or waiting; further ones are answered with 429.")
    ] = 1024
    max_waiting: Annotated[
        int, msgspec.Meta(ge=0), Option(help="Requests that may wait for one model while its nodes are full.", metavar="N")
    ] = 512
    max_tenant_waiting: Annotated[int, msgspec.Meta(ge=0), Option(help="As --max-waiting, of one tenant.", metavar="N")] = 256
    max_wait: Annotated[
        _Seconds,
        Option(
            help="How long a request may have to wait for a full model; one that would wait longer is refused at once.",
            metavar="SECONDS",
        ),
    ] = 30.0
    max_failures: Annotated[
        int, msgspec.Meta(ge=1), Option(help="Nodes that may fail on one request before the request is given up.")
    ] = 4
    queue_wait: Annotated[
        _Seconds, Option(help="How long a request waits for a node while none is ready.", metavar="SECONDS")
    ] = 2.0
    loading_wait: Annotated[
        _Seconds,
        Option(help="As --queue-wait, while a node is loading the model; then 503 says how far it is.", metavar="SECONDS"),
    ] = 30.0
    hedge: Annotated[
        bool, Option(help="Ask a second node when the first token is late; as the header x-infermesh-hedge: on.")
    ] = False
    first_token_timeout: Annotated[
        _Seconds, Option(help="How long a node may take to its first token, once it accepted the request.", metavar="SECONDS")
    ] = 30.0
    stall_timeout: Annotated[_Seconds, Option(help="How long a node may take from one token to the next.", metavar="SECONDS")] = (
        60.0
    )
    request_timeout: Annotated[_Seconds, Option(help="How long a request may take in all.", metavar="SECONDS")] = 1800.0


def check_binding(config: GatewayConfig) -> None:
    """Raises Misconfigured when ports clash, or would be open to others and the operator did not say so."""
    if config.registry_port and config.registry_port == config.port:
        raise Misconfigured(
            f"--port and --registry-port are both {config.port}; the registry's endpoints are on --port anyway, "
            "so leave --registry-port out or give it another number"
        )
    if config.insecure or config.api_keys or is_loopback_host(config.host):
        return
    raise Misconfigured(
        f"--host {config.host} opens this gateway to everybody who reaches it; "
        "use --host 127.0.0.1, or add --api-keys FILE, or --insecure if everybody there may use the mesh"
    )
