"""Joining a Ray cluster, or starting one on this machine that nobody else can reach; what every node must see.

A cluster runs the code of whoever reaches its ports. Hence the one that is started here listens on loopback only and, unless
the environment says otherwise, asks for a token that this process and its children alone know.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import socket
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from actors import WORKING_FOLDER, ray_private
from syn4seg.config.placement import PlacementConfig
from syn4seg.errors import UserError
from syn4seg.trust import VARIABLE

KEPT_SESSIONS = 3
"""Ended sessions of Ray whose logs are kept."""
UNLIMITED_NODES = 64
"""Nodes of a type that an autoscaler may start without any limit are counted up to this many."""
DEFAULT_STORE_GIB = 1.0
"""Object store of a cluster that is started here."""
CLUSTER_STORE_SHARE = 0.3
"""Share of the object store of a joined cluster that the stream may fill."""
ANSWER_SECONDS = 60.0
"""How long a node may take to start a worker and look at a path."""


def node_resources() -> list[Mapping[str, float]]:
    """Return the resources of the connected cluster's nodes: the living ones, then those that its autoscaler may still start."""
    import ray

    alive = [n for n in ray.nodes() if n["Alive"]]
    return [n["Resources"] for n in alive] + _future_nodes(alive)


def start_seconds() -> int:
    """Return how long to wait for actors: half an hour where nodes may have to be started first, else ten minutes."""
    import ray

    return 1800 if _future_nodes([n for n in ray.nodes() if n["Alive"]]) else 600


def store_bytes_for(placement: PlacementConfig) -> int:
    """Return the bytes of object store: its size on a cluster that is started here, what the stream may fill of a joined one.

    Without `placement.object_store_gib` that is 1 GiB, or 30 % of what the joined cluster's living nodes have.
    """
    if placement.object_store_gib is not None:
        return int(placement.object_store_gib * 2**30)
    if not joins_others(placement.address):
        return int(DEFAULT_STORE_GIB * 2**30)
    import ray

    return int(CLUSTER_STORE_SHARE * ray.cluster_resources()["object_store_memory"])


def _future_nodes(alive: list[dict]) -> list[Mapping[str, float]]:
    """Return what the autoscaler's node types allow beyond the living nodes; nothing on a cluster without one."""
    nodes: list[Mapping[str, float]] = []
    for group in ray_private.node_groups():
        running = sum(n.get("Labels", {}).get("ray.io/node-group") == group.name for n in alive)
        limit = UNLIMITED_NODES if group.max_count < 0 else group.max_count
        nodes += [{key: float(value) for key, value in group.resources.items()}] * max(0, limit - running)
    return nodes


def inside_job() -> bool:
    """Return whether this process is the entrypoint of a Ray job (`ray job submit`), which is to use the job's own cluster.

    Ray's job supervisor sets this variable for the entrypoint alone, not for the tasks and actors that it starts.
    """
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def connect(placement: PlacementConfig) -> None:
    """Join the cluster of `placement.address`, or start one on this machine that listens on loopback only.

    Raises:
        UserError: nothing answers at the address, it is none, the cluster refuses us, or others may enter Ray's folder.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    address = _resolve(placement.address)
    if address == "local":
        _start(placement)
    else:
        _join(address)


def start_line(address: str) -> str:
    """Return a line that says what `connect` is about to wait for."""
    return f"joining the Ray cluster at {_resolve(address)}" if joins_others(address) else "starting Ray on this machine"


def joins_others(address: str) -> bool:
    """Return whether `placement.address` is a cluster that goes on without this process."""
    return _resolve(address) != "local"


def _resolve(address: str) -> str:
    if address == "here":
        return "auto" if inside_job() else "local"
    return address


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

    if ray.is_initialized():
        return
    ray_private.use_loopback_only()
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own 15 starves the stream beside any other busy process
    cpus = max(4, os.cpu_count() or 1)  # logical: local stages share the machine as threads would
    os.environ[WORKING_FOLDER] = os.getcwd()  # for Ray's processes alone
    try:
        with (
            _without_lines_of_ray(),
            contextlib.chdir(_private_folder()),
        ):  # Ray puts this directory first on the path of its processes
            _start_here(placement, cpus)
    finally:
        del os.environ[WORKING_FOLDER]


@contextlib.contextmanager
def _without_lines_of_ray() -> Iterator[None]:
    """Keep the lines of Ray's compiled code off a terminal, where they would tear the progress bars; its log files have them.

    With `-v` (SYN4SEG_DEBUG=1) they are shown.
    """
    if not sys.stderr.isatty() or os.environ.get("SYN4SEG_DEBUG") == "1":
        yield
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # that it took the level from the variable is a line itself
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _start_here(placement: PlacementConfig, cpus: int) -> None:
    """Start Ray on this machine; a second time where the first one was too slow for Ray's own limits.

    Raises:
        UserError: it does not start.
    """
    import ray

    _drop_old_sessions(_private_folder() / "ray")
    for attempt in (1, 2):
        try:
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
            return
        except Exception as error:  # noqa: BLE001 - whatever Ray raises when its processes do not answer in time
            with contextlib.suppress(Exception):
                ray.shutdown()
            if attempt == 2:
                raise UserError(
                    f"Ray did not start on this machine, twice ({' '.join(str(error).split())[:200]}); it may be too busy: run the "
                    "same command again later, or with placement.runner=inline, which needs no Ray"
                ) from None


def _drop_old_sessions(folder: Path) -> None:
    """Delete what Ray keeps of ended commands (logs and sockets), but for the last `KEPT_SESSIONS`.

    Args:
        folder: private to this user; a session is named by its date and by the process of its command.
    """
    import psutil

    processes = {p: p.name.rpartition("_")[2] for p in sorted(folder.glob("session_2*_*"))}
    ended = [p for p, number in processes.items() if number.isdecimal() and not psutil.pid_exists(int(number))]
    for path in ended[:-KEPT_SESSIONS]:
        shutil.rmtree(path, ignore_errors=True)


def _private_folder() -> Path:
    """Return a folder that only this user can enter: Ray lets everybody write into its own, where its sockets and logs are.

    Raises:
        UserError: somebody else has made it, or has opened it.
    """
    folder = Path(f"/tmp/syn4seg-{os.getuid()}")  # short: the path of a socket has at most 107 bytes
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
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
    setting = f"placement.address={address}"
    if "://" in address:
        raise UserError(
            f"{setting}: expected HOST:PORT of the cluster's head, as `ray start --head` prints it (6379), or auto; "
            "from another machine use `ray job submit`"
        )
    try:
        head = ray_private.head_address(address)
        host, _, port = head.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()  # Ray itself would try for minutes
    except (OSError, ValueError) as error:
        raise UserError(
            f"{setting}: nothing answers there ({error}); start the cluster (`ray start --head`), or use `local`"
        ) from None
    try:
        trusted = {VARIABLE: os.environ[VARIABLE]} if os.environ.get(VARIABLE) else {}  # other machines do not inherit it
        runtime: dict[str, Any] = {"runtime_env": {"env_vars": trusted}} if trusted else {}
        ray.init(address=head, logging_level=logging.ERROR, log_to_driver=False, **runtime)
    except (ConnectionError, RuntimeError, RayError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{setting}: the cluster does not let us in ({reason}); use its version of Ray and Python, and its token "
            "(RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or ~/.ray/auth_token)"
        ) from None


def is_url(location: str) -> bool:
    """Return whether a run is kept in an object store rather than in a directory."""
    return bool(re.match(r"[A-Za-z][\w+.-]*:/", location)) and not location.startswith("file:")


def check_out(out: str | None) -> None:
    """Refuse, inside a Ray job, a run directory that would be lost with the job's own copy of the working directory.

    Args:
        out: `--out` as it was given.

    Raises:
        UserError: it is missing or relative.
    """
    if not inside_job() or (out and (is_url(out) or Path(out.removeprefix("file://")).is_absolute())):
        return
    problem = f"--out {out}: relative to" if out else "--out is not given; the default, runs/NAME, is in"
    raise UserError(
        f"{problem} the job's temporary working directory, which is deleted with the job; give an absolute path that "
        "every node sees (--out /mnt/shared/runs/NAME), or an object store (--out s3://BUCKET/runs/NAME)"
    )


def check_shared(root: str, inputs: Mapping[str, str] | None = None) -> None:
    """Refuse a run directory or input files that some node of the connected cluster does not see.

    A file with a random name is written beside the run, in the nearest directory that exists; every living node must read it and
    write one of its own, or reach the object store. Nothing is checked on a cluster of one node, nor on nodes that join later. A
    relative path is refused where there are or will be several nodes: each process would look for it somewhere else.

    Args:
        root: where the run is or will be: a path, or a URL.
        inputs: each further file or folder that must be there, by the key that names it; what is no file here is a name.

    Raises:
        UserError: naming the nodes, what they do not see, and the remedy.
    """
    import ray

    nodes = {n["NodeID"]: n["NodeName"] for n in ray.nodes() if n["Alive"]}  # a name is the address by default
    paths = {key: path for key, path in (inputs or {}).items() if os.path.isabs(path)}
    relative = {key: path for key, path in (inputs or {}).items() if key not in paths and os.path.exists(path)}
    if relative and len(node_resources()) > 1:
        key, path = next(iter(relative.items()))
        raise UserError(
            f"{key}={path}: relative to this process's directory, which other nodes do not have; give an "
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
        problems = _problems_by_node(nodes, str(token or root), paths)
    finally:
        if token is not None:
            token.unlink(missing_ok=True)
    if problems:
        shown = "; ".join(f"node {nodes[node]}: {problem}" for node, problem in sorted(problems.items())[:8])
        more = f" (and {len(problems) - 8} more nodes)" if len(problems) > 8 else ""
        raise UserError(
            f"the nodes do not see the same files: {shown}{more}. Use directories that every node mounts (NFS, EFS, "
            "Lustre); a run may also be in an object store: --out s3://BUCKET/runs/NAME"
        )


def _problems_by_node(nodes: Mapping[str, str], location: str, paths: Mapping[str, str]) -> dict[str, str]:
    """Run `_problems` on every node; return what the nodes that have any lack."""
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(_problems)
    calls = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(location, dict(paths)): node
        for node in nodes
    }
    answered, silent = ray.wait(list(calls), num_returns=len(calls), timeout=ANSWER_SECONDS)
    problems = {calls[ref]: f"no answer within {ANSWER_SECONDS:g} s" for ref in silent}
    for ref in answered:
        try:
            lines = ray.get(ref)
        except RayTaskError as error:
            raise UserError(
                f"node {nodes[calls[ref]]} cannot run this project ({error.cause}); install the same version of it on "
                "every node, or submit a job with --working-dir ."
            ) from None
        except RayError:  # the node is going away; its work would go to another one
            continue
        if lines:
            problems[calls[ref]] = ", ".join(lines)
    return problems


def _problems(location: str, paths: Mapping[str, str]) -> list[str]:
    """Return what this node does not see, cannot write, or cannot reach (`location`: the token's path, or the run's URL)."""
    problems = [f"{key}={path} is not there" for key, path in paths.items() if not os.path.exists(path)]
    try:
        if is_url(location):
            from syn4seg.store.files import as_path, check_reachable

            check_reachable(as_path(location))
            return problems
        if Path(location).read_text() != Path(location).name:
            return [*problems, f"--out: other files are in {Path(location).parent}"]
        own = Path(f"{location}.{secrets.token_hex(4)}")
        own.touch()
        own.unlink()
    except OSError as error:
        problems.append(f"--out: {error.strerror} in {Path(location).parent}")
    except UserError as error:
        problems.append(f"--out: {error}")
    return problems
