"""The text encoders (and a local language model) in one short-lived actor, whose memory is free before images are generated.

Stable Diffusion 3.5's text encoders are 10.4 GiB of 25.6; every distinct prompt goes through them once, here.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from typing import Any

from actors.cluster import connect, node_resources
from actors.failures import local_error
from actors.graph import device_of
from actors.placement import Operator, preflight
from syn4seg.config.tree import Config
from syn4seg.models.embeddings import Encoded
from syn4seg.models.generators import generator_source, load_text_encoder
from syn4seg.models.protocols import TextEncoder
from syn4seg.prompts.agents import load_agent
from syn4seg.prompts.protocol import PromptAgent


class TextModels:
    """The text encoders of a config's image model, and its prompt agent if that is a local language model."""

    def __init__(self, config: Config):
        """Take the configuration; nothing loads yet, so that an error can be told from a dead actor."""
        self.config = config
        self.device = device_of(config, config.placement.encoding)
        self.encoder: Any = None
        self.agent: Any = None

    def load(self) -> None:
        """Load what the configuration names.

        Raises:
            UserError: a model is not there or cannot be read.
        """
        self.encoder = load_text_encoder(self.config.synthesis.generator, device=self.device)
        if self.config.prompts.agent == "transformers":
            self.agent = _agent(self.config, self.device)

    def free(self) -> None:
        """Let go of the networks and of the GPU memory that they held."""
        self.encoder = self.agent = None
        gc.collect()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()

    def encode(self, prompts: list[str]) -> Encoded:
        """Encode as `TextEncoder.encode` does."""
        return self.encoder.encode(prompts)

    def cut_at(self, prompts: list[str]) -> list[int]:
        """Return as `DiffusionTextEncoder.cut_at`; 0 for an encoder that reads everything."""
        cut_at = getattr(self.encoder, "cut_at", None)
        return cut_at(prompts) if cut_at is not None else [0] * len(prompts)

    def propose(self, class_name: str, round_index: int, accepted: list[str], refused: list[tuple[str, str]]) -> list[str]:
        """Propose as `PromptAgent.propose` does, by the local language model."""
        return self.agent.propose(class_name, round_index, accepted, refused)


class RemoteTextModels:
    """`TextModels` in an actor; an error there is a UserError or a WorkerError in this process, see `local_error`."""

    def __init__(self, actor: Any):
        self.actor = actor

    def encode(self, prompts: list[str]) -> Encoded:
        """Encode as `TextEncoder.encode` does."""
        return _result(self.actor.encode.remote(prompts))

    def cut_at(self, prompts: list[str]) -> list[int]:
        """Return as `TextModels.cut_at`."""
        return _result(self.actor.cut_at.remote(prompts))

    def propose(self, class_name: str, round_index: int, accepted: list[str], refused: list[tuple[str, str]]) -> list[str]:
        """Propose as `PromptAgent.propose` does, by the local language model."""
        return _result(self.actor.propose.remote(class_name, round_index, accepted, refused))


def _result(reference: Any) -> Any:
    import ray
    import ray.exceptions

    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        remedy = "give it a larger node or a GPU (placement.encoding.cpus, .gpus)"
        raise local_error("the text encoders", error, remedy=remedy) from error


@contextlib.contextmanager
def text_encoder(config: Config) -> Iterator[TextEncoder]:
    """Yield the text encoder of a run for as long as the block lasts; it is the prompt agent too if that is a local language model.

    With `placement.runner=ray` it lives in one actor with the CPUs and GPUs of `placement.encoding`, which is killed at the end;
    inline it lives in this process and is freed. The renderer's bag of words has no weights and needs no actor.

    Raises:
        UserError: it does not fit on the cluster, cannot be loaded, or its process was lost.
        WorkerError: any other failure of its process.
    """
    light = generator_source(config.synthesis.generator).path is None and config.prompts.agent != "transformers"
    if config.placement.runner == "inline" or light:
        models = TextModels(config)
        try:
            models.load()
            yield models
        finally:
            models.free()
        return
    import ray

    pool = config.placement.encoding
    connect(config.placement)
    preflight([Operator(TextModels, {}, pool, "encoding")], node_resources())
    remote: Any = ray.remote(TextModels)
    actor = remote.options(
        num_cpus=pool.cpus, num_gpus=pool.gpus, resources=pool.resources, accelerator_type=pool.accelerator
    ).remote(config)
    try:
        _result(actor.load.remote())
        yield RemoteTextModels(actor)
    finally:
        ray.kill(actor)


def prompt_agent(config: Config, encoder: TextEncoder) -> PromptAgent:
    """Return who proposes the prompts: the local language model beside `encoder`, or an agent in this process."""
    if config.prompts.agent == "transformers":
        assert isinstance(encoder, TextModels | RemoteTextModels)
        return encoder
    return _agent(config, "cpu")


def _agent(config: Config, device: str) -> PromptAgent:
    settings, world = config.prompts, generator_source(config.synthesis.generator).world
    words = (settings.words(name) for name in settings.names) if world == "natural" else ()
    return load_agent(
        settings.agent,
        world=world,
        seed=config.seed,
        llm=settings.llm,
        base_url=settings.base_url,
        key_variable=settings.key_variable,
        per_round=settings.per_round,
        temperature=settings.temperature,
        timeout=settings.timeout,
        device=device,
        words={one.name: one for one in words},
    )
