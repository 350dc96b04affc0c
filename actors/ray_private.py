"""The only module that uses what Ray keeps private; `tests/actors/test_ray_private.py` holds it to the installed version.

Ray has no public way to ask which nodes an autoscaler may still start, to start a cluster on loopback alone, to learn which
address `auto` stands for before it is waited on for minutes, or to keep a replica of Serve from listening on every interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def node_groups() -> Sequence[Any]:
    """Return the node types of the connected cluster's autoscaler (`name`, `max_count`, `resources`); none without one."""
    from ray._private.state import state

    config = state.get_cluster_config()
    return config.node_group_configs if config else ()


def use_loopback_only() -> None:
    """Let a cluster that this process starts know no other address than loopback, and bind every port there.

    On Linux `_node_ip_address="127.0.0.1"` is replaced by the machine's own address, and ports are bound to all of them. The
    variable RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 does as much, but is read when Ray is imported.
    """
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def head_address(address: str) -> str:
    """Return HOST:PORT of a cluster's head; `auto` is RAY_ADDRESS or the cluster that runs on this machine.

    Raises:
        ValueError, ConnectionError: it is no address, or no cluster runs here.
    """
    from ray._private.services import canonicalize_bootstrap_address

    return str(canonicalize_bootstrap_address(address))


def keep_replica_on_loopback() -> None:
    """Let the replica of Ray Serve in this process, which is being built, open its port for other deployments on loopback only.

    It would listen on every interface, ask for no token, and unpickle what it is sent. Serve's HTTP proxies do not use that port
    unless the environment tells them to (RAY_SERVE_USE_GRPC_BY_DEFAULT); then it stays as it is.
    """
    from ray.serve._private import constants, replica

    add_port = replica.add_port_to_grpc_server
    if not constants.RAY_SERVE_PROXY_USE_GRPC:
        replica.add_port_to_grpc_server = lambda server, address: add_port(server, address.replace("[::]", "127.0.0.1"))
