"""The local language model: repeatable, asked through its own template, harmless when it babbles, clear when it is broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from syn4seg.config.class_words import ClassWords
from syn4seg.errors import UserError
from syn4seg.models.renderer import BagOfWords
from syn4seg.prompts.agents import check_agent, load_agent
from syn4seg.prompts.bank import build_bank, unit_rows
from syn4seg.prompts.language_model import LanguageModelAgent, check_folder
from syn4seg.prompts.proposals import RecordedAgent, build_messages

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message, please') }}{% endif %}" + TEMPLATE
STAR = ["a red star on sand", "two small blue stars on night", "a big green dotted star on grass"]


def tokenizer(template: str | None):
    """A byte-level tokenizer whose words are those of our own question."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    special = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
    text = [m["content"] for name in ("star", "bus") for m in build_messages(name, "natural", 3, [], [])]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    found = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", additional_special_tokens=special[2:])
    found.chat_template = template
    return found


def saved(folder: Path, template: str | None = TEMPLATE, positions: int = 2048) -> Path:
    """A random two-layer Llama with its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer(template)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(words),
        max_position_embeddings=positions,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def babbler(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("llm") / "babbler")


def agent(folder: Path, **changes: Any) -> LanguageModelAgent:
    given = {"world": "natural", "seed": 0, "per_round": 2, "device": "cpu"} | changes
    return LanguageModelAgent(str(folder), **given)


def question(asked: LanguageModelAgent, *history: Any) -> str:
    """What the network is shown for a first round."""
    seen = []
    hook = asked.model.register_forward_pre_hook(lambda _, __, given: seen.append(given["input_ids"]), with_kwargs=True)
    asked.propose("bus", 0, *(history or ([], [])))
    hook.remove()
    return asked.tokenizer.decode(seen[0][0])


# ---------------------------------------------------------------------------------------------------- sampling
def test_a_round_depends_on_seed_class_and_round_and_on_no_other_random_number(babbler: Path):
    one = agent(babbler)
    first = one.propose("star", 0, [], [])
    torch.manual_seed(77)
    before = torch.random.get_rng_state()
    assert one.propose("star", 0, [], []) == first == agent(babbler).propose("star", 0, [], [])
    assert torch.equal(torch.random.get_rng_state(), before)
    others = [one.propose("star", 1, [], []), one.propose("bus", 0, [], []), agent(babbler, seed=1).propose("star", 0, [], [])]
    assert all(other != first for other in others)


def test_temperature_zero_takes_the_likeliest_word_whatever_the_seed(babbler: Path):
    cold = [agent(babbler, temperature=0, seed=s).propose("star", s, [], []) for s in (0, 1)]
    assert cold[0] == cold[1]


def embedded_in_words(texts: list[str]):
    """float32 (N, E): what the bank compares."""
    return unit_rows(BagOfWords().encode(texts).pooled)


def test_babble_costs_patience_and_ends_with_the_warning(babbler: Path):
    bank = build_bank(agent(babbler, per_round=1), embedded_in_words, "star", size=3, lambda_prompt=0.97, patience=4)
    assert bank.stopped == "patience" and not bank.accepted and "0 of 3 prompts; stopped after 4 candidates" in bank.warning
    assert all(len(c.text) <= 301 for c in bank.refused)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> str:
    """Folder of a small GPT-2 that knows one answer by heart, in place of a large one that knows English."""
    from transformers import GPT2Config, GPT2LMHeadModel

    words = tokenizer(TEMPLATE)
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=32,
        n_layer=1,
        n_head=2,
        n_positions=1024,
        vocab_size=len(words),
        bos_token_id=0,
        eos_token_id=1,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    network = GPT2LMHeadModel(config)
    text: Any = words.apply_chat_template(build_messages("star", "natural", 3, [], []), tokenize=False, add_generation_prompt=True)
    asked, answer = (words(t, add_special_tokens=False).input_ids for t in (text, json.dumps(STAR) + "</s>"))
    tokens = torch.tensor([asked + answer])
    labels = tokens.clone()
    labels[:, : len(asked)] = -100
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        network(tokens, labels=labels).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("llm") / "learnt"
    network.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def bank_of(asked: Any, size: int):
    return build_bank(asked, embedded_in_words, "star", size=size, lambda_prompt=0.97, patience=5)


def test_a_model_that_has_learnt_to_answer_fills_the_bank(learnt: str):
    asked = load_agent("transformers", world="natural", seed=0, llm=learnt, per_round=3, temperature=0.0, device="cpu")
    assert [c.text for c in bank_of(asked, 3).accepted] == STAR


class Killed(Exception):
    """What ends a process in the tests."""


class UntilKilled:
    """An agent in a process that ends after some rounds."""

    def __init__(self, inner: Any, rounds: int):
        self.inner, self.left = inner, rounds

    def propose(self, class_name: str, round_index: int, accepted: list[str], refused: list[tuple[str, str]]) -> list[str]:
        if not self.left:
            raise Killed
        self.left -= 1
        return self.inner.propose(class_name, round_index, accepted, refused)


def test_a_stopped_prompt_stage_goes_on_from_its_record_to_the_same_bank(learnt: str, tmp_path: Path):
    def asked(seed: int) -> LanguageModelAgent:
        return agent(Path(learnt), per_round=3, temperature=0.3, seed=seed)

    whole, cut = bank_of(RecordedAgent(asked(0), tmp_path / "whole"), 9), tmp_path / "cut"
    assert whole.accepted and whole.refused and whole.stopped == "patience"
    with pytest.raises(Killed):
        bank_of(RecordedAgent(UntilKilled(asked(0), 1), cut), 9)
    first = (cut / "star.jsonl").read_bytes()
    with (cut / "star.jsonl").open("ab") as f:
        f.write(b'{"class": "st')  # the process went down in the middle of a line
    resumed = bank_of(RecordedAgent(asked(0), cut), 9)
    assert (resumed.accepted, resumed.refused) == (whole.accepted, whole.refused)
    record = (cut / "star.jsonl").read_bytes()
    assert record.startswith(first) and record == (tmp_path / "whole" / "star.jsonl").read_bytes()
    again = bank_of(RecordedAgent(UntilKilled(asked(7), 0), cut), 9)  # another seed: nothing of it is ever asked
    assert (again.accepted, again.refused) == (whole.accepted, whole.refused)


# ------------------------------------------------------------------------------------------------ the question
def test_the_model_is_asked_in_its_own_template(babbler: Path, tmp_path: Path):
    system, user = (m["content"] for m in build_messages("bus", "natural", 2, [], []))
    assert question(agent(babbler)) == f"<|system|>{system}</s><|user|>{user}</s><|assistant|>"
    merged = question(agent(saved(tmp_path / "no-system", NO_SYSTEM)))
    assert merged == f"<|user|>{system}\n\n{user}</s><|assistant|>"
    plain = question(agent(saved(tmp_path / "none", None)))
    assert plain.endswith(f"{system}\n\n{user}\n[") and "<|" not in plain


def test_the_model_is_told_synonyms_and_definition(babbler: Path):
    words = {"bus": ClassWords(name="bus", synonyms=("coach",), definition="a long vehicle for many people")}
    text = question(agent(babbler, words=words))
    assert '"bus" (a long vehicle for many people)' in text and 'names "bus" or "coach"' in text


@pytest.mark.parametrize("template", ["{{ messages[0].content + 3 }}", "{{ 1 / 0 }}", "{% for %}", "{{ '' }}", "{{ x.y.z }}"])
def test_a_broken_template_is_as_none(babbler: Path, tmp_path: Path, template: str):
    broken = shutil.copytree(babbler, tmp_path / "copy")
    (broken / "chat_template.jinja").write_text(template)
    assert question(agent(broken)).endswith("strings:\n[")


def test_the_history_is_shown_as_far_as_the_context_holds_it(tmp_path: Path, babbler: Path):
    accepted, refused = [f"bus {i} in the rain" for i in range(40)], [(f"car {i}", "off class") for i in range(40)]
    text = question(agent(babbler), accepted, refused)
    assert '"bus 39 in the rain"' in text and '"car 39": does not name the class' in text and '"bus 10 in' in text
    short = agent(saved(tmp_path / "short", positions=700))
    text = question(short, accepted, refused)
    assert '"bus 39 in the rain"' in text and '"bus 10 in' not in text
    with pytest.raises(UserError, match=r"context of 300 tokens is too small.*lower prompts\.per_round=2"):
        agent(saved(tmp_path / "tiny", positions=300)).propose("bus", 0, [], [])


# -------------------------------------------------------------------------------------------------- bad models
def _cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _without_a_tensor(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _misshapen(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"] = torch.zeros(7)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _missing_shard(folder: Path) -> None:
    listed = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))


def _no_language_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))


def _no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def _half_a_tokenizer(folder: Path) -> None:
    data = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(data[: len(data) // 2])


def _set(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def _unknown_kind(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data.replace(b'"F32"', b'"X32"', 1))


@pytest.mark.parametrize(
    "harm, said",
    [
        (_cut, r"model\.safetensors is cut short or damaged \(\d+ of \d+ bytes\); download it again"),
        (_without_a_tensor, r"1 tensors are missing.*layers\.1\.mlp\.up_proj\.weight; download"),
        (_misshapen, r"(another shape, such as model\.norm\.weight|cannot be loaded)"),
        (_pickled, r"no \.safetensors file in this folder"),
        (_missing_shard, r"model-00002-of-00002\.safetensors is missing \(1 of 2 shards are there\)"),
        (_no_language_model, "cannot be loaded.*expected a causal language model"),
        (_no_tokenizer, "cannot be loaded.*with its tokenizer"),
        (lambda folder: (folder / "config.json").unlink(), r"no config\.json in this folder \(found: .*model\.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "cannot be loaded"),
        (lambda folder: _set(folder, hidden_size="wide"), "cannot be loaded .*hidden_size"),
        (lambda folder: _set(folder, num_attention_heads=0), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be loaded.*with its tokenizer"),
        (_half_a_tokenizer, "cannot be loaded.*with its tokenizer"),
        (_unknown_kind, "cannot be loaded .*X32"),
    ],
)
def test_a_broken_folder_is_refused_with_its_fault(babbler: Path, tmp_path: Path, harm: Any, said: str):
    folder = shutil.copytree(babbler, tmp_path / "copy")
    harm(folder)
    with pytest.raises(UserError, match=rf"prompts\.llm=.*copy:? .*{said}"):
        agent(folder)


def _without_numbers(folder: Path) -> None:
    state = {name: tensor * torch.nan for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "harm, said",
    [
        (_without_numbers, "RuntimeError: probability tensor contains"),
        (lambda folder: (folder / "generation_config.json").write_text('{"num_beams": "x"}'), "TypeError"),
    ],
)
def test_a_model_that_fails_while_it_writes_is_an_error(babbler: Path, tmp_path: Path, harm: Any, said: str):
    folder = shutil.copytree(babbler, tmp_path / "copy")
    harm(folder)
    with pytest.raises(UserError, match=rf"prompts\.llm=.*copy failed on cpu: {said}.*use a smaller model"):
        agent(folder).propose("bus", 0, [], [])


def test_names_that_are_no_model_are_refused_before_anything_loads(tmp_path: Path):
    for name in ("./models/x", str(tmp_path / "absent"), "a b", "a/b/c"):
        with pytest.raises(UserError, match="neither a folder nor a hub id"):
            check_agent("transformers", llm=name, base_url=None, key_variable="X")
    check_folder("someone/a-model")
    for other, why in (
        ("oracle", "expected grammar, chat or transformers"),
        ("transformers", r"prompts\.llm is empty"),
        ("chat", r"prompts\.llm is empty"),
    ):
        with pytest.raises(UserError, match=why):
            load_agent(other, world="natural", seed=0)


def test_a_hub_model_that_is_not_here_says_how_to_get_it(babbler: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub
    from huggingface_hub import constants, errors

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"llm=someone/absent: .*hf download someone/absent --local-dir.*prompts\.agent=grammar"):
        agent(Path("someone/absent"))
    for kind, remedy in (
        (errors.GatedRepoError, "gated: accept its licence at .*someone/absent and set HF_TOKEN"),
        (errors.RepositoryNotFoundError, "no such model on the hub, or it is private"),
    ):

        def fetch(*_: Any, kind: Any = kind, **__: Any) -> str:
            raise kind.__new__(kind)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
        with pytest.raises(UserError, match=remedy):
            agent(Path("someone/absent"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(babbler))
    assert agent(Path("someone/babbler")).propose("star", 0, [], []) == agent(babbler).propose("star", 0, [], [])
