"""Prompt agents: who proposes the candidate prompts of a class. The grammar agent needs no language model; `load_agent` has two
more that do.

A grammar is a product of word lists; a seeded permutation of that product is cut into rounds, so the proposals of a
round are a pure function of (seed, class, round), and no sentence ever comes twice. There are two grammars: the
sentences of the embedded world, and natural English for any class name, with words that suit the kind of thing (an
animal runs, a pizza does not).
"""

from __future__ import annotations

from collections.abc import Mapping

from syn4seg.config.class_words import ClassWords
from syn4seg.errors import UserError
from syn4seg.models.protocols import PromptWorld
from syn4seg.prompts.grammar import GrammarAgent
from syn4seg.prompts.protocol import PromptAgent


def load_agent(
    agent: str,
    *,
    world: PromptWorld,
    seed: int,
    llm: str | None = None,
    base_url: str | None = None,
    key_variable: str = "OPENAI_API_KEY",
    per_round: int = 16,
    temperature: float = 1.0,
    timeout: float = 60.0,
    device: str = "auto",
    words: Mapping[str, ClassWords] | None = None,
) -> PromptAgent:
    """Return the agent of a name.

    Args:
        agent: "grammar"; "chat", an OpenAI-compatible endpoint; "transformers", a causal language model on this machine.
        llm: name of the model at the endpoint; or its folder or hub id.
        base_url: address of the endpoint; None for OpenAI's own.
        key_variable: environment variable that holds the endpoint's key.
        per_round: prompts that a language model is asked for at once.
        temperature: of a language model's sampling; 0 takes the likeliest word.
        timeout: seconds to wait for the endpoint.
        device: "auto" (a GPU if there is one), "cpu" or "cuda", for "transformers".
        words: synonyms and definitions, by the name under which a class is asked for; none where there are none.

    Raises:
        UserError: another name, no `llm`, no key, or a model that is not there or cannot be read; says what to do.
    """
    check_agent(agent, llm=llm, base_url=base_url, key_variable=key_variable)
    if agent == "grammar":
        return GrammarAgent(world=world, seed=seed, words=words or {})
    assert llm is not None
    if agent == "chat":
        from syn4seg.prompts.chat import ChatAgent

        return ChatAgent(
            llm,
            world=world,
            seed=seed,
            base_url=base_url,
            key_variable=key_variable,
            per_round=per_round,
            temperature=temperature,
            timeout=timeout,
            words=words or {},
        )
    from syn4seg.prompts.language_model import LanguageModelAgent

    return LanguageModelAgent(
        llm, world=world, seed=seed, per_round=per_round, temperature=temperature, device=device, words=words or {}
    )


def check_agent(agent: str, *, llm: str | None, base_url: str | None, key_variable: str) -> None:
    """Check what can be said of an agent before anything loads, without the network: its name, the key, the address, the folder.

    Raises:
        UserError: as `load_agent`.
    """
    if agent == "grammar":
        return
    if agent not in ("chat", "transformers"):
        raise UserError(f"prompt agent {agent!r} is unknown; expected grammar, chat or transformers")
    if not llm:
        raise UserError(f"prompts.llm is empty, but prompts.agent is {agent!r}: name the language model")
    if agent == "chat":
        from syn4seg.models.endpoint import endpoint

        endpoint(base_url, key_variable)
    else:
        from syn4seg.prompts.language_model import check_folder

        check_folder(llm)
