"""The prompt agent that runs a causal language model on this machine, through its chat template; repeatable by named seeds.

Weights are safetensors only, and no code of a model's repository is run. A model without a chat template is asked in plain
text and its reply is begun for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from syn4seg.config.class_words import ClassWords
from syn4seg.data import embedded
from syn4seg.errors import UserError
from syn4seg.models import transformers_folder
from syn4seg.models.device import resolve_device
from syn4seg.models.protocols import PromptWorld
from syn4seg.models.transformers_folder import WantedFolder
from syn4seg.prompts.proposals import SHOWN, build_messages, parse_reply

TOKENS_PER_PROMPT = 60  # room for a reply, besides 64 tokens for what is around the prompts
_WANTED = WantedFolder(
    "prompts.llm",
    "Qwen/Qwen2.5-7B-Instruct",
    "a causal language model with safetensors weights, as transformers' save_pretrained writes it",
    "use prompts.agent=grammar, which needs none",
)


def check_folder(model: str) -> None:
    """Check that a model may be loaded, as far as can be told without loading it or using the network.

    Raises:
        UserError: neither a folder nor a hub id; or a folder that is incomplete or damaged.
    """
    transformers_folder.check_folder(model, _WANTED)


class LanguageModelAgent:
    """Samples prompts from a causal language model; a round is a pure function of seed, class, round and what came before."""

    def __init__(
        self,
        model: str,
        *,
        world: PromptWorld,
        seed: int,
        per_round: int = 16,
        temperature: float = 1.0,
        device: str = "auto",
        words: Mapping[str, ClassWords] = {},
    ):
        """Load a folder or hub id: bfloat16 on a GPU, float32 on the CPU.

        Args:
            temperature: 0 takes the likeliest word.
            device: "auto" (a GPU if there is one), "cpu" or "cuda".
            words: synonyms and definitions, by the name under which a class is asked for.

        Raises:
            UserError: the model is not there, gated, incomplete or of another kind.
        """
        import torch

        self.name, self.seed, self.per_round, self.temperature = model, seed, per_round, temperature
        self.world: PromptWorld = world
        self.words = words
        check_folder(model)
        folder = transformers_folder.locate_folder(model, _WANTED)
        check_folder(str(folder))
        self.device = torch.device(resolve_device(device))
        self.tokenizer, self.model = _loaded(model, folder, self.device)

    def propose(self, class_name: str, round_index: int, accepted: list[str], refused: list[tuple[str, str]]) -> list[str]:
        """Return one round of prompts; as few as the model's reply holds.

        Raises:
            UserError: the model's context is too small for the question, or it fails.
        """
        import torch

        room = 64 + TOKENS_PER_PROMPT * self.per_round
        tokens, begun = self._question(class_name, accepted, refused, room)
        seed = int(embedded.seeded("language model", self.seed, class_name, round_index).integers(2**63))
        how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if self.temperature > 0:
            how = {"do_sample": True, "temperature": self.temperature, "top_p": 0.95, "top_k": 0}
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        how |= {"attention_mask": torch.ones_like(tokens), "max_new_tokens": room, "pad_token_id": pad}
        try:
            with torch.no_grad(), torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(seed)
                output = self.model.generate(tokens, **how)
        except Exception as error:  # noqa: BLE001 - whatever the model's own settings and weights lead to
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UserError(
                f"prompts.llm={self.name} failed on {self.device}: {reason}; use a smaller model, a GPU with more "
                "memory or fewer prompts.per_round"
            ) from None
        reply = self.tokenizer.decode(output[0, tokens.shape[1] :], skip_special_tokens=True)
        return parse_reply(begun + reply, self.per_round)

    def _question(self, class_name: str, accepted: list[str], refused: list[tuple[str, str]], room: int) -> tuple[Any, str]:
        """Return tokens int64 (1, T) of the question, with as much of the history as the model's context holds, and the reply's
        begin."""
        limit = getattr(self.model.config, "max_position_embeddings", None) or 2**31
        length = 0
        for shown in (SHOWN, 10, 3, 0):
            messages = build_messages(class_name, self.world, self.per_round, accepted, refused, shown, self.words.get(class_name))
            text, begun = self._as_text(messages)
            tokens = self.tokenizer(text, add_special_tokens=bool(begun), return_tensors="pt").input_ids
            length = tokens.shape[1]
            if length + room <= limit:
                return tokens.to(self.device), begun
        raise UserError(
            f"prompts.llm={self.name}: its context of {limit} tokens is too small for a question of {length} and a "
            f"reply of {room}; lower prompts.per_round={self.per_round}, or use another model"
        )

    def _as_text(self, messages: list[dict[str, str]]) -> tuple[str, str]:
        """Return the question in the model's chat template (system message and all, or merged into the user's), else as plain
        text."""
        merged = [{"role": "user", "content": "\n\n".join(message["content"] for message in messages)}]
        for form in (messages, merged) if self.tokenizer.chat_template else ():
            try:
                text = self.tokenizer.apply_chat_template(form, tokenize=False, add_generation_prompt=True, enable_thinking=False)
            except Exception:  # noqa: BLE001 - a template is a program: many refuse a system message, and some are broken
                continue
            if text.strip():
                return text, ""
        return merged[0]["content"] + "\n[", "["


def _loaded(model: str, folder: Path, device: Any) -> tuple[Any, Any]:
    """Return tokenizer and model on `device`, in eval mode."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    causal: Any = transformers.AutoModelForCausalLM
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **common)
        network, info = causal.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **common)
    except Exception as error:  # noqa: BLE001 - configurations, tokenizers and weights fail with any exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"prompts.llm={model} cannot be loaded ({reason}); expected {_WANTED.what}, with its tokenizer") from None
    if missing := sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}):
        raise UserError(
            f"prompts.llm={model}: {len(missing)} tensors are missing or have another shape, such as {missing[0]}; "
            "download the model again"
        )
    return tokenizer, network.to(device).eval()
