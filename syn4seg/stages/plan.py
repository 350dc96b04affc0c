"""The prompt bank and the plan: what will be made, decided before anything is made."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.config.tree import Config
from syn4seg.data.datasets import Fold
from syn4seg.errors import UserError
from syn4seg.prompts.bank import Bank, build_bank, diversity, unit_rows
from syn4seg.prompts.grammar import GrammarAgent, plain_prompt
from syn4seg.prompts.proposals import Recorded
from syn4seg.prompts.protocol import PromptAgent
from syn4seg.seeds import noise_seed
from syn4seg.stages.rows import CLASS_NAME, HDIG
from syn4seg.stages.setup import EMBEDDED_MODELS, imported_files
from syn4seg.store.files import exists
from syn4seg.store.rundir import RunDir
from syn4seg.store.tables import write_parquet

if TYPE_CHECKING:
    from syn4seg.models.protocols import TextEncoder


def make_plan(
    config: Config, run: RunDir, fold: Fold, note: Callable[[str], None], agent: PromptAgent | None, encoder: TextEncoder | None
) -> None:
    """Writes prompts.parquet, embeddings.safetensors and plan.parquet, unless they are there already.

    What a language model proposes is also kept, in proposals/CLASS.jsonl, and not asked for again; a grammar repeats itself.

    Args:
        note: called with one line per class and per warning.
        agent: proposes the prompts; None for imported images.
        encoder: embeds them; None for imported images.

    Raises:
        UserError: no prompt of a class was accepted, the agent or the encoder fails, or a class has no images to import.
    """
    if exists(run.plan):
        return
    if config.synthesis.source == "folder":
        table = _imported(config, fold)
    else:
        assert agent is not None and encoder is not None
        kept = agent if isinstance(agent, GrammarAgent) else Recorded(agent, run.root / "proposals")
        table = _generated(config, run, fold, note, kept, encoder)
    write_parquet(run.plan, table)


def read_planned_samples(run: RunDir) -> pa.Table:
    """The plan without its padding: one row per sample.

    Raises:
        UserError: there is no plan yet.
    """
    table = run.read_plan()
    return table.filter(pc.field("padding") == False).drop_columns(["padding"])  # noqa: E712 - an Arrow expression


def _rows(config: Config, samples: list[tuple[str, int, str, str, int]]) -> pa.Table:
    """Plan table of (sample_id, class_id, bank, prompt, prompt_row); the last batch is padded with its last row."""
    size = config.synthesis.batch
    padding = -len(samples) % size
    padded = samples + samples[-1:] * padding
    ids, classes, banks, prompts, prompt_rows = (list(column) for column in zip(*padded, strict=True))
    return pa.table(
        {
            "sample_id": ids,
            "class_id": pa.array(classes, pa.int32()),
            "bank": banks,
            "prompt": prompts,
            "prompt_row": pa.array(prompt_rows, pa.int32()),
            "noise_seed": pa.array([noise_seed(config.seed, sample) for sample in ids], pa.int64()),
            "batch": pa.array([i // size for i in range(len(padded))], pa.int32()),
            "padding": pa.array([i >= len(samples) for i in range(len(padded))], pa.bool_()),
        }
    )


def _interleaved(groups: list[list]) -> list:
    """Round robin over the groups, so that every class begins early in the stream."""
    return [x for turn in itertools.zip_longest(*groups) for x in turn if x is not None]


def _slug(name: str) -> str:
    return name.replace(" ", "_")


def _imported(config: Config, fold: Fold) -> pa.Table:
    groups = []
    for index in fold.novel_indices:
        name = fold.index_names[index]
        files = imported_files(config, name)
        groups.append([(f"import-{_slug(name)}-{i:05d}", index, HDIG, path, -1) for i, path in enumerate(files)])
    return _rows(config, _interleaved(groups))


def _generated(
    config: Config, run: RunDir, fold: Fold, note: Callable[[str], None], agent: PromptAgent, encoder: TextEncoder
) -> pa.Table:
    from syn4seg.models.embeddings import Encoded, joined, save_embeddings

    world = "embedded" if config.synthesis.model in EMBEDDED_MODELS else "natural"
    kept: dict[str, Encoded] = {}

    def encode(texts: list[str]) -> np.ndarray:
        made = encoder.encode(texts)
        kept.update({text: made.rows([i]) for i, text in enumerate(texts)})
        return unit_rows(made.pooled)

    names = [fold.index_names[i] for i in fold.novel_indices]
    plain = {name: plain_prompt(name, world) for name in names}
    alone = dict(zip(names, encode(list(plain.values())), strict=True))
    banks: dict[str, Bank] = {}
    for name in names:
        banks[name] = build_bank(
            agent,
            encode,
            name,
            size=config.prompts.bank_size,
            lambda_prompt=config.prompts.lambda_prompt,
            patience=config.prompts.patience,
        )
        _report(run, note, banks[name], alone[name])
    texts = list(dict.fromkeys([*(c.text for b in banks.values() for c in b.accepted), *plain.values()]))
    save_embeddings(run.embeddings, joined([kept[text] for text in texts]))
    write_parquet(run.prompts, _prompt_table(fold, banks, plain))
    row = {text: i for i, text in enumerate(texts)}
    return _rows(config, _samples(config, fold, banks, plain, row))


def _report(run: RunDir, note: Callable[[str], None], bank: Bank, plain: np.ndarray) -> None:
    """Notes and logs how diverse a bank is, beside its class-name prompt (float32 (E,)) repeated as often."""
    name, count = bank.class_name, len(bank.accepted)
    if not count:
        raise UserError(
            f"{bank.warning}. Nothing can be generated for this class. What a language model proposed is in "
            f"{run.root / 'proposals'}: delete the file of the class to have the model asked again"
        )
    spread, repeated = diversity(bank.embeddings), diversity(np.repeat(plain[None], count, 0))
    ours, plainly = (f"mean cosine {d['mean_cosine']:.3f}, Vendi {d['vendi']:.1f}" for d in (spread, repeated))
    note(
        f"{name}: {count} prompts, {bank.acceptance_rate:.0%} of the candidates accepted, {ours} (its class-name prompt {count} "
        f"times: {plainly})"
    )
    if bank.warning:
        note(f"warning: {bank.warning}")
    run.log(
        stage="prompts",
        class_name=name,
        accepted=count,
        refused=len(bank.refused),
        stopped=bank.stopped,
        class_name_prompt=repeated,
        **spread,
    )


def _samples(config: Config, fold: Fold, banks: dict[str, Bank], plain: dict[str, str], row: dict[str, int]) -> list:
    count, groups = config.synthesis.images_per_class, []
    for index in fold.novel_indices:
        name = fold.index_names[index]
        used = {HDIG: [c.text for c in banks[name].accepted]}
        if config.synthesis.class_name_bank:
            used[CLASS_NAME] = [plain[name]]
        for bank, texts in used.items():
            texts = [texts[i % len(texts)] for i in range(count)]
            groups.append([(f"{bank}-{_slug(name)}-{i:05d}", index, bank, t, row[t]) for i, t in enumerate(texts)])
    return _interleaved(groups)


def _prompt_table(fold: Fold, banks: dict[str, Bank], plain: dict[str, str]) -> pa.Table:
    rows = []
    for name, bank in banks.items():
        index = fold.index_names.index(name)
        judged = sorted([*bank.accepted, *bank.refused], key=lambda c: c.order)
        rows += [
            {
                "class": name,
                "class_id": index,
                "bank": HDIG,
                "prompt": c.text,
                "order": c.order,
                "accepted": not c.why,
                "similarity": c.similarity,
                "nearest": c.nearest,
                "why": c.why,
            }
            for c in judged
        ]
        rows.append(
            {
                "class": name,
                "class_id": index,
                "bank": CLASS_NAME,
                "prompt": plain[name],
                "order": 0,
                "accepted": True,
                "similarity": None,
                "nearest": "",
                "why": "",
            }
        )
    return pa.Table.from_pylist(rows)
