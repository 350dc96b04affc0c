"""The prompt agent that asks any OpenAI-compatible endpoint, see `models.endpoint` for how.

What no waiting can mend (no key, nobody there, no such model) is an error at once. Late replies, 429 and 5xx are asked for
again after growing waits; a round without a reply is empty, and several in a row are an error: nothing spins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from syn4seg.config.class_words import ClassWords
from syn4seg.data import embedded
from syn4seg.errors import UserError
from syn4seg.models.endpoint import TRIES, Answer, EndpointClient, endpoint, pause
from syn4seg.models.protocols import PromptWorld
from syn4seg.prompts.proposals import build_messages, parse_reply

SILENT_ROUNDS = 5  # rounds in a row without a reply after which the endpoint counts as dead


class ChatAgent:
    """Asks a chat model for JSON arrays of prompts, showing it what was accepted and refused, and why."""

    def __init__(
        self,
        model: str,
        *,
        world: PromptWorld,
        seed: int,
        base_url: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        per_round: int = 16,
        temperature: float = 1.0,
        timeout: float = 60.0,
        first_wait: float = 2.0,
        words: Mapping[str, ClassWords] = {},
    ):
        """Take the settings; nothing is sent yet.

        Args:
            model: its name at the endpoint.
            seed: sent with every request, hashed with class and round, to endpoints that take one.
            first_wait: seconds before the second try; doubled for every further one.
            words: synonyms and definitions, by the name under which a class is asked for.

        Raises:
            UserError: as `endpoint`.
        """
        self.model, self.seed, self.key_variable = model, seed, key_variable
        self.per_round, self.temperature, self.first_wait = per_round, temperature, first_wait
        self.world: PromptWorld = world
        self.words = words
        place = endpoint(base_url, key_variable)
        self.client = EndpointClient(place, section="prompts", user="prompts.agent=chat", timeout=timeout)
        self.takes_seed, self.silent_rounds = True, 0

    def propose(self, class_name: str, round_index: int, accepted: list[str], refused: list[tuple[str, str]]) -> list[str]:
        """Return one round of prompts; none if the endpoint does not answer in time or its reply holds none.

        Raises:
            UserError: the endpoint refuses the request, nobody is there, or it has been silent for `SILENT_ROUNDS` rounds.
        """
        messages = build_messages(class_name, self.world, self.per_round, accepted, refused, words=self.words.get(class_name))
        seed = int(embedded.seeded("chat", self.seed, class_name, round_index).integers(2**31))
        answer = Answer()
        for attempt in range(TRIES):
            answer = self._ask(messages, seed)
            if not answer.problem:
                self.client.has_answered, self.silent_rounds = True, 0
                return [self.client.hidden(text) for text in parse_reply(answer.reply, self.per_round)]  # JSON may have escaped it
            if not answer.again:
                raise UserError(answer.problem)
            if attempt < TRIES - 1:
                pause(answer, attempt, self.first_wait)
        self.silent_rounds += 1
        if self.silent_rounds == SILENT_ROUNDS:
            raise UserError(
                f"{self.client.where} has not answered for {SILENT_ROUNDS} rounds of {TRIES} tries ({answer.problem}); "
                "run the same command again later, which goes on from here, or raise prompts.timeout"
            )
        return []

    def _ask(self, messages: list[dict[str, str]], seed: int) -> Answer:
        """Return one request; its reply is the text of the completion."""
        body: dict[str, Any] = {"model": self.model, "messages": messages, "temperature": self.temperature}
        body |= {"seed": seed} if self.takes_seed else {}
        answer = self.client.ask(lambda client: _content(client.chat.completions.create(**body)))
        if answer.status in (400, 422) and self.takes_seed:
            self.takes_seed = False
            return self._ask(messages, seed)
        if answer.status and not answer.again:
            problem = f"{self.client.where} refuses the request ({answer.problem}); {self._remedy(answer.status)}"
            return answer._replace(problem=problem)
        if answer.problem:
            return answer
        if answer.reply is None:
            return Answer(problem="the reply is no chat completion; prompts.base_url most often ends in /v1", again=True)
        return Answer(self.client.hidden(answer.reply))

    def _remedy(self, status: int) -> str:
        if status in (401, 403):
            return f"set the environment variable {self.key_variable} to a key that may use {self.model}"
        if status == 404:
            return (
                f"check prompts.llm={self.model} (the endpoint lists its models under {self.client.place.address}/models) and "
                "prompts.base_url, which most often ends in /v1"
            )
        if status == 429:
            return "the account has no credit left"
        return f"check prompts.llm={self.model} and prompts.temperature={self.temperature:g}"


def _content(reply: Any) -> str | None:
    """Return the text of a chat completion, "" if it has none; None if it is something else."""
    choices = getattr(reply, "choices", None)
    if not isinstance(choices, list):
        return None
    content = getattr(getattr(choices[0], "message", None), "content", None) if choices else None
    return content if isinstance(content, str) else ""
