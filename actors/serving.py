"""A trained segmenter behind Ray Serve: replicas that gather requests into batches for the network.

`application` is what `serve run actors.serving:application model=DIR` and a Serve config name; `serving` is the same for the verb.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import ipaddress
import logging
import math
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError

from actors import ray_private
from actors.cluster import connect, joins_others, node_resources
from actors.failures import local_error
from syn4seg.config.placement import PlacementConfig
from syn4seg.errors import UserError, catch_signals
from syn4seg.trained.model import Model, load
from syn4seg.trained.prediction import PredictionOptions, Seen, see_tiles, see_whole
from syn4seg.trained.service import build_app

if TYPE_CHECKING:
    from ray.serve import Application
    from starlette.applications import Starlette
    from torch import Tensor

NAME = "syn4seg"
"""Of the application and of its deployment."""
NEEDED = ("fastapi", "starlette", "uvicorn")
"""Packages that Ray Serve imports, beside those of Ray itself."""
WAITING = 16
"""Requests that may wait per image of a batch; of more, Serve answers with status 503."""
ANSWER_SECONDS = 300.0
STOP_SECONDS = 5.0
"""How long requests in flight may still take when it ends."""


class ServeOptions(BaseModel):
    """What a replica serves and how; the arguments of `application`, all of which may be text.

    Attributes:
        model: folder or URL of a model or of a finished run, seen by every node that has a replica.
        device: "auto", "cpu" or "cuda".
        replicas: processes that each hold the model; a Serve config may scale them instead.
        gpus: share of a GPU of each; Ray does not enforce memory.
        batch: images that the network sees at a time, at most.
        wait_ms: how long a batch waits to be filled, in milliseconds.
        max_bytes: of an upload: 25000000, 25MB, 25MiB.
        trust: run the code that the model names as its backbone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    device: Literal["auto", "cpu", "cuda"] = "auto"
    replicas: int = Field(1, ge=1, le=10_000)
    gpus: float = Field(0.0, ge=0, le=16)
    batch: int = Field(8, ge=1, le=256)
    wait_ms: float = Field(5.0, ge=0, le=10_000)
    max_bytes: ByteSize = Field(ByteSize(25_000_000), ge=1, le=2**30)
    trust: bool = False


def read_options(values: Mapping[str, Any]) -> ServeOptions:
    """Return the options that keys and values describe.

    Raises:
        UserError: a key is unknown or missing, or a value makes no sense.
    """
    try:
        return ServeOptions.model_validate(dict(values))
    except ValidationError as error:
        facts = error.errors()[0]
        key = ".".join(str(part) for part in facts["loc"])
        given = "" if facts["type"] == "missing" else f"={str(facts['input'])[:60]}"
        raise UserError(f"{key}{given}: {facts['msg']}; expected one of {', '.join(ServeOptions.model_fields)}") from None


class Segmentation:
    """A model in a replica: one thread runs the network, one brings scores to pixels, others decode and encode pictures.

    Attributes:
        counts: images that the network saw whole, and the batches in which it did.
    """

    def __init__(self, options: ServeOptions):
        from ray import serve

        self.model: Model = load(options.model, options.device, options.trust)
        self.network, self.pixels = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        gather = serve.batch(max_batch_size=options.batch, batch_wait_timeout_s=options.wait_ms / 1000)
        self.scores = gather(self.batch_scores)
        self.counts = Counter(images=0, batches=0)

    async def segment(self, image: np.ndarray, options: PredictionOptions) -> Seen:
        """Return what the network says of an image uint8 (H, W, 3), which it sees in a batch with those of other requests."""
        ask = asyncio.get_running_loop().run_in_executor
        if options.is_tiled(image):
            return await ask(self.network, see_tiles, self.model, image, options)
        scores = await self.scores(image)
        return await ask(self.pixels, see_whole, self.model, scores, image.shape[:2], options)

    async def batch_scores(self, images: list[np.ndarray]) -> list[Tensor]:
        """Return the scores (1, C, size, size) of each image uint8 (H_i, W_i, 3) of a batch."""
        self.counts.update(images=len(images), batches=1)
        found = await asyncio.get_running_loop().run_in_executor(self.network, self.model.scores, images)
        return list(found[:, None])


def application(args: dict[str, Any]) -> Application:
    """Build the Serve application of a model.

    Args:
        args: keys of `ServeOptions`; `deployments` in a Serve config sets replicas, their scaling and their share of a GPU anew.

    Raises:
        UserError: they make no sense.
    """
    from ray import serve

    options = read_options(args)

    def build() -> Starlette:  # in each replica
        ray_private.keep_replica_on_loopback()
        part = Segmentation(options)
        return build_app(part.model.config, part.segment, lambda: part.counts, options.max_bytes)

    deployment = serve.deployment(
        serve.ingress(build)(),
        name=NAME,
        num_replicas=options.replicas,
        max_ongoing_requests=2 * options.batch,
        max_queued_requests=WAITING * options.batch,
        graceful_shutdown_timeout_s=STOP_SECONDS,
        ray_actor_options={"num_cpus": 1, "num_gpus": options.gpus},
    )
    return deployment.bind()


def check_installed() -> None:
    """Raise UserError where Ray Serve is missing; Ray itself is not imported."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"syn4seg serve needs {', '.join(missing)}: `pip install 'syn4seg-ray[serve]'`")


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_port(host: str, port: int) -> None:
    """Raise UserError where an address cannot be listened on."""
    try:
        family, kind, number, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, number) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen()
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror or error}); stop what does, or give another "
            "--port or --host"
        ) from None


@contextlib.contextmanager
def serving(options: ServeOptions, gpus: float | None, host: str, port: int, address: str) -> Iterator[ServeOptions]:
    """Serve a model under Ray until the block ends; yield the options with the share of a GPU that each replica has.

    Args:
        gpus: as asked for; None: half of one where the cluster has any.
        address: as `placement.address`.

    Raises:
        UserError: Ray does not start, Serve runs there already, the replicas do not fit, or a process is lost.
        WorkerError: a replica fails otherwise.
    """
    connect(PlacementConfig(address=address))
    catch_signals()  # Ray brings handlers of its own
    from ray import serve
    from ray.exceptions import RayError

    if serve.status().proxies:
        raise UserError(
            f"--address {address}: Ray Serve runs on this cluster already; deploy the model beside the others with a Serve config "
            "(docs/cluster.md)"
        )
    options = options.model_copy(update={"gpus": _fitting_gpus(options, gpus)})
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port, "request_timeout_s": ANSWER_SECONDS})
        try:
            serve.run(application(options.model_dump()), name=NAME)
        except (RuntimeError, RayError) as error:
            raise local_error("the server", error) from error
        yield options
    finally:
        if joins_others(address):  # a cluster that was started here ends with this process
            serve.shutdown()


def _fitting_gpus(options: ServeOptions, gpus: float | None) -> float:
    """Return the share of a GPU of each replica.

    Raises:
        UserError: so many replicas do not fit, for which Serve would wait without a word.
    """
    nodes = node_resources()
    if gpus is None:
        gpus = 0.5 if options.device != "cpu" and any(node.get("GPU", 0) for node in nodes) else 0.0
    room = 0
    for node in nodes:
        on_gpus = math.floor(node.get("GPU", 0)) * math.floor(1 / gpus) if 0 < gpus <= 1 else math.inf
        on_gpus = math.floor(node.get("GPU", 0) / gpus) if gpus > 1 else on_gpus
        room += int(min(on_gpus, node.get("CPU", 0)))
    if room < options.replicas:
        raise UserError(
            f"--replicas {options.replicas} --gpus {gpus:g}: the cluster has room for {room} (each takes its share of a GPU and "
            "one CPU); ask for fewer, or for a smaller share"
        )
    return gpus
