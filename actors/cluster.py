"""Joining a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

from syn4seg.sections import Placement


def node_resources() -> list[Mapping[str, float]]:
    """Resources of the living nodes of the connected cluster."""
    import ray

    return [n["Resources"] for n in ray.nodes() if n["Alive"]]


def inside_job() -> bool:
    """Whether this process is the entrypoint of a Ray job (`ray job submit`), which is to use the job's own cluster."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def connect(placement: Placement) -> None:
    """Joins the cluster of `placement.address`, or starts one on this machine that listens on loopback only.

    Raises:
        ValueError: nothing answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    address = placement.address
    if address == "here":
        address = "auto" if inside_job() else "local"
    if address == "local":
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a loopback cluster of this one process
    import ray

    if ray.is_initialized():
        return
    if address == "local":
        cpus = max(4, os.cpu_count() or 1)  # logical: local stages share the machine as threads would
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
                 object_store_memory=int(placement.object_store_gib * 2**30), _node_ip_address="127.0.0.1")  # fmt: skip
        return
    if ":" in address and "://" not in address:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, ValueError) as error:
            raise ValueError(f"placement.address={address}: nothing answers there ({error}); start the cluster, "
                             "or use `local`") from None  # fmt: skip
    try:
        ray.init(address=address, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ValueError(f"placement.address={address}: {error}; start a cluster (`ray start --head`), "
                         "or use `local`") from None  # fmt: skip
