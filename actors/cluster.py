"""Joining a Ray cluster, or starting one on this machine that nobody else can reach; what every node must see.

A cluster runs the code of whoever reaches its ports. Hence the one that is started here listens on loopback only and, unless
the environment says otherwise, asks for a token that this process and its children alone know.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from syn4seg.config.sections import PlacementConfig
from syn4seg.errors import UserError

UNLIMITED = 64
"""Nodes of a type that an autoscaler may start without any limit are counted up to this many."""
DEFAULT_STORE_GIB = 1.0
"""Object store of a cluster that is started here."""
CLUSTER_STORE_SHARE = 0.3
"""Share of the object store of a joined cluster that the stream may fill."""
ANSWER_SECONDS = 60.0
"""How long a node may take to start a worker and look at a path."""


def node_resources() -> list[Mapping[str, float]]:
    """Resources of the nodes of the connected cluster: the living ones, then those that its autoscaler may still start."""
    import ray

    alive = [n for n in ray.nodes() if n["Alive"]]
    return [n["Resources"] for n in alive] + _promised(alive)


def start_seconds() -> int:
    """How long to wait for actors: half an hour where nodes may have to be started first, else ten minutes."""
    import ray

    return 1800 if _promised([n for n in ray.nodes() if n["Alive"]]) else 600


def store_bytes_for(placement: PlacementConfig) -> int:
    """Object store in bytes: its size on a cluster that is started here, what the stream may fill of a joined one.

    Without `placement.object_store_gib` that is 1 GiB, or 30 % of what the joined cluster's living nodes have.
    """
    if placement.object_store_gib is not None:
        return int(placement.object_store_gib * 2**30)
    if _address(placement) == "local":
        return int(DEFAULT_STORE_GIB * 2**30)
    import ray

    return int(CLUSTER_STORE_SHARE * ray.cluster_resources()["object_store_memory"])


def _promised(alive: list[dict]) -> list[Mapping[str, float]]:
    """What the autoscaler's node types allow beyond the living nodes; nothing on a cluster without one."""
    from ray._private.state import state

    config = state.get_cluster_config()
    found: list[Mapping[str, float]] = []
    for group in config.node_group_configs if config else ():
        here = sum(n.get("Labels", {}).get("ray.io/node-group") == group.name for n in alive)
        most = UNLIMITED if group.max_count < 0 else group.max_count
        found += [{key: float(value) for key, value in group.resources.items()}] * max(0, most - here)
    return found


def inside_job() -> bool:
    """Whether this process is the entrypoint of a Ray job (`ray job submit`), which is to use the job's own cluster.

    Ray's job supervisor sets this variable for the entrypoint alone, not for the tasks and actors that it starts.
    """
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def connect(placement: PlacementConfig) -> None:
    """Joins the cluster of `placement.address`, or starts one on this machine that listens on loopback only.

    Raises:
        UserError: nothing answers at the address, it is none, the cluster refuses us, or Ray's folder here is not ours alone.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    address = _address(placement)
    if address == "local":
        _start(placement)
    else:
        _join(address)


def _address(placement: PlacementConfig) -> str:
    if placement.address == "here":
        return "auto" if inside_job() else "local"
    return placement.address


def _start(placement: PlacementConfig) -> None:
    if inside_job():
        raise UserError(
            "placement.address=local: this is a Ray job, which has a cluster already; leave the key out, or set "
            "placement.runner=inline to use none"
        )
    if "ray" not in sys.modules:  # Ray reads its security settings when it is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray
    from ray._private import ray_constants

    if ray.is_initialized():
        return
    # Linux: `_node_ip_address="127.0.0.1"` is replaced by the machine's own address, and every port is bound to all of them.
    # With this switch (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, read at import) Ray knows no other address than loopback.
    ray_constants.ENABLE_RAY_CLUSTER = False
    cpus = max(4, os.cpu_count() or 1)  # logical: local stages share the machine as threads would
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=store_bytes_for(placement),
        _node_ip_address="127.0.0.1",
        _temp_dir=os.environ.get("RAY_TMPDIR") or str(_private_folder() / "ray"),
    )


def _private_folder() -> Path:
    """A folder that only this user can enter: Ray lets everybody write into its own, where its sockets and logs are.

    Raises:
        UserError: somebody else has made it, or has opened it.
    """
    folder = Path(f"/tmp/syn4seg-{os.getuid()}")  # short: the path of a socket has at most 107 bytes
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UserError(
            f"{folder}: not a folder of this user alone, so others could meddle with Ray's sockets there; remove it, "
            "or set the environment variable RAY_TMPDIR to a short path of a private folder"
        )
    return folder


def _join(address: str) -> None:
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        return
    shown = f"placement.address={address}"
    if "://" in address:
        raise UserError(
            f"{shown}: expected HOST:PORT of the cluster's head, as `ray start --head` prints it (6379), or auto; "
            "from another machine use `ray job submit`"
        )
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found = str(canonicalize_bootstrap_address(address))  # `auto`: RAY_ADDRESS, or the cluster that runs here
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()  # Ray itself would try for minutes
    except (OSError, ValueError) as error:
        raise UserError(
            f"{shown}: nothing answers there ({error}); start the cluster (`ray start --head`), or use `local`"
        ) from None
    try:
        ray.init(address=found, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, RayError) as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"{shown}: the cluster does not let us in ({said}); use its version of Ray and Python, and its token "
            "(RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or ~/.ray/auth_token)"
        ) from None


# ------------------------------------------------------------------------------------------- what every node must see
def is_url(place: str) -> bool:
    """Whether a run is kept in an object store rather than in a directory."""
    return bool(re.match(r"[A-Za-z][\w+.-]*:/", place)) and not place.startswith("file:")


def check_out(out: str | None) -> None:
    """Refuses, inside a Ray job, a run directory that would be lost with the job's own copy of the working directory.

    Args:
        out: `--out` as it was given.

    Raises:
        UserError: it is missing or relative.
    """
    if not inside_job() or (out and (is_url(out) or Path(out.removeprefix("file://")).is_absolute())):
        return
    given = f"--out {out}: relative to" if out else "--out is not given; the default, runs/NAME, is in"
    raise UserError(
        f"{given} the job's temporary working directory, which is deleted with the job; give an absolute path that "
        "every node sees (--out /mnt/shared/runs/NAME), or an object store (--out s3://BUCKET/runs/NAME)"
    )


def check_shared(root: str, inputs: Mapping[str, str] | None = None) -> None:
    """Refuses a run directory or input files that some node of the connected cluster does not see.

    A file with a random name is written beside the run, in the nearest directory that exists; every living node must read it and
    write one of its own, or reach the object store. Nothing is asked on a cluster of one node, nor of nodes that join later. A
    relative path is refused where there are or will be several nodes: each process would look for it somewhere else.

    Args:
        root: where the run is or will be: a path, or a URL.
        inputs: each further file or folder that must be there, by the key that names it; what is no file here is a name.

    Raises:
        UserError: naming the nodes, what they do not see, and the remedy.
    """
    import ray

    nodes = {n["NodeID"]: n["NodeName"] for n in ray.nodes() if n["Alive"]}  # a name is the address, unless given
    inputs = inputs or {}
    wanted = {key: path for key, path in inputs.items() if os.path.isabs(path)}
    relative = [key for key, path in inputs.items() if key not in wanted and os.path.exists(path)]
    if relative and len(node_resources()) > 1:
        key = relative[0]
        raise UserError(
            f"{key}={inputs[key]}: relative to this process's directory, which other nodes do not have; give an "
            "absolute path in a directory that every node mounts"
        )
    if len(nodes) == 1:
        return
    token = None
    if not is_url(root):
        folder = Path(root.removeprefix("file://")).absolute()
        token = next(p for p in (folder, *folder.parents) if p.is_dir()) / f".syn4seg-{secrets.token_hex(8)}"
    try:
        if token is not None:
            token.write_text(token.name)
        complaints = _ask(nodes, str(token or root), wanted)
    finally:
        if token is not None:
            token.unlink(missing_ok=True)
    if complaints:
        said = "; ".join(f"node {nodes[node]}: {what}" for node, what in sorted(complaints.items())[:8])
        more = f" (and {len(complaints) - 8} more nodes)" if len(complaints) > 8 else ""
        raise UserError(
            f"the nodes do not see the same files: {said}{more}. Use directories that every node mounts (NFS, EFS, "
            "Lustre); a run may also be in an object store: --out s3://BUCKET/runs/NAME"
        )


def _ask(nodes: Mapping[str, str], place: str, wanted: Mapping[str, str]) -> dict[str, str]:
    """Complaint of each node that has one."""
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(_lacks)
    there = {node: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)) for node in nodes}
    asked = {task.remote(place, dict(wanted)): node for node, task in there.items()}
    done, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    found = {asked[ref]: f"no answer within {ANSWER_SECONDS:g} s" for ref in silent}
    for ref in done:
        try:
            lacks = ray.get(ref)
        except RayTaskError as error:
            raise UserError(
                f"node {nodes[asked[ref]]} cannot run this project ({error.cause}); install the same version of it on "
                "every node, or submit a job with --working-dir ."
            ) from None
        except RayError:  # the node is going away; its work would go to another one
            continue
        if lacks:
            found[asked[ref]] = ", ".join(lacks)
    return found


def _lacks(place: str, wanted: Mapping[str, str]) -> list[str]:
    """Runs on a node: what it does not see there, cannot write, or cannot reach (`place`: the token's path, or the run's URL)."""
    lacks = [f"{key}={path} is not there" for key, path in wanted.items() if not os.path.exists(path)]
    try:
        if is_url(place):
            from syn4seg.store.files import as_path, check_reachable

            check_reachable(as_path(place))
            return lacks
        if Path(place).read_text() != Path(place).name:
            return [*lacks, f"--out: other files are in {Path(place).parent}"]
        own = Path(f"{place}.{secrets.token_hex(4)}")
        own.touch()
        own.unlink()
    except OSError as error:
        lacks.append(f"--out: {error.strerror} in {Path(place).parent}")
    except UserError as error:
        lacks.append(f"--out: {error}")
    return lacks
