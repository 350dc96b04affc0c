"""What a prompt agent is: it proposes candidate prompts of a class in rounds."""

from __future__ import annotations

from typing import Protocol


class PromptAgent(Protocol):
    """Proposes candidate prompts in rounds (HDIG, method.md 1)."""

    def propose(self, class_name: str, round_index: int, accepted: list[str], refused: list[tuple[str, str]]) -> list[str]:
        """Return one round of candidates, in the order in which they are to be judged.

        Args:
            class_name: the novel class, as the data set spells it.
            round_index: 0, 1, 2...
            accepted: the bank so far, in order.
            refused: (prompt, why) of every candidate refused so far, in order.

        Returns:
            Any number of prompts; an empty, repeated or off-class one costs patience and nothing else.
        """
        ...
