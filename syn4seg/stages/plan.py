"""The prompt bank and the plan (method.md 1): which images will be generated, decided before the first one is."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.config.class_words import ClassWords
from syn4seg.config.tree import Config
from syn4seg.data.datasets import Fold
from syn4seg.errors import UserError
from syn4seg.prompts.bank import Bank, build_bank, diversity, unit_rows
from syn4seg.prompts.grammar import GrammarAgent, plain_prompt
from syn4seg.prompts.proposals import RecordedAgent
from syn4seg.prompts.protocol import PromptAgent
from syn4seg.seeds import noise_seed
from syn4seg.stages.rows import CLASS_NAME, HDIG
from syn4seg.stages.setup import imported_files
from syn4seg.store.files import exists
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import id_part
from syn4seg.store.tables import write_parquet

if TYPE_CHECKING:
    from syn4seg.models.protocols import TextEncoder


def make_plan(
    config: Config, run: RunDir, fold: Fold, note: Callable[[str], None], agent: PromptAgent | None, encoder: TextEncoder | None
) -> None:
    """Write prompts.parquet, embeddings.safetensors and plan.parquet, unless they exist already.

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
        table = _plan_import(config, fold, note)
    else:
        assert agent is not None and encoder is not None
        if not isinstance(agent, GrammarAgent):
            agent = RecordedAgent(agent, run.root / "proposals")
        table = _plan_generation(config, run, fold, note, agent, encoder)
    write_parquet(run.plan, table)


def read_planned_samples(run: RunDir) -> pa.Table:
    """Return the plan without its padding: one row per sample.

    Raises:
        UserError: there is no plan yet.
    """
    table = run.read_plan()
    return table.filter(pc.field("padding") == False).drop_columns(["padding"])  # noqa: E712 - an Arrow expression


def _plan_table(config: Config, groups: list[list[tuple[str, int, str, str, int]]]) -> pa.Table:
    """Return the plan of samples (sample_id, class_id, bank, prompt, prompt_row), grouped by class and bank.

    The groups take turns, so that every class begins early in the stream; the last batch is padded with its last row.
    """
    samples = [sample for turn in itertools.zip_longest(*groups) for sample in turn if sample is not None]
    size = config.synthesis.batch
    padded = samples + samples[-1:] * (-len(samples) % size)
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


def _plan_import(config: Config, fold: Fold, note: Callable[[str], None]) -> pa.Table:
    groups = []
    for index in fold.novel_indices:
        name = fold.index_names[index]
        files = imported_files(config, name)
        note(files.summary(name))
        groups.append([(f"import-{id_part(name)}-{i:05d}", index, HDIG, path, -1) for i, path in enumerate(files.paths)])
    return _plan_table(config, groups)


def _plan_generation(
    config: Config, run: RunDir, fold: Fold, note: Callable[[str], None], agent: PromptAgent, encoder: TextEncoder
) -> pa.Table:
    """Build the prompt bank of every class, write it with its embeddings, and return the plan."""
    from syn4seg.models.embeddings import Encoded, concatenate, save_embeddings
    from syn4seg.models.generators import generator_source

    world = generator_source(config.synthesis.generator).world
    encoded: dict[str, Encoded] = {}

    def encode(texts: list[str]) -> np.ndarray:
        embeddings = encoder.encode(texts)
        encoded.update({text: embeddings.rows([i]) for i, text in enumerate(texts)})
        return unit_rows(embeddings.pooled)

    names, hdig = [fold.index_names[i] for i in fold.novel_indices], config.prompts
    words = {name: hdig.words(name) if world == "natural" else ClassWords(name=name) for name in names}
    if world != "natural" and set(names) & set(hdig.names):
        note(f"warning: prompts.names is not used: synthesis.model={config.synthesis.model} knows its own names of classes alone")
    class_prompts = {name: plain_prompt(words[name].name, world) for name in names}
    class_embeddings = dict(zip(names, encode(list(class_prompts.values())), strict=True))
    banks: dict[str, Bank] = {}
    cut_at = getattr(encoder, "cut_at", None)
    for name in names:
        limits = {"size": hdig.bank_size, "lambda_prompt": hdig.lambda_prompt, "patience": hdig.patience}
        banks[name] = build_bank(agent, encode, words[name].name, **limits, synonyms=words[name].synonyms, cut_at=cut_at)
        cut = [limit for limit in cut_at([c.text for c in banks[name].accepted]) if limit] if cut_at is not None else []
        if cut:
            note(f"warning: {name}: {len(cut)} accepted prompts are longer than the {cut[0]} tokens that the text encoder reads")
        _report(run, note, name, banks[name], class_embeddings[name])
    texts = list(dict.fromkeys([*(c.text for b in banks.values() for c in b.accepted), *class_prompts.values()]))
    save_embeddings(run.embeddings, concatenate([encoded[text] for text in texts]))
    write_parquet(run.prompts, _prompt_table(fold, banks, class_prompts))
    row, groups = {text: i for i, text in enumerate(texts)}, []
    for index, name in zip(fold.novel_indices, names, strict=True):
        used = {HDIG: [c.text for c in banks[name].accepted]}
        if config.synthesis.class_name_bank:
            used[CLASS_NAME] = [class_prompts[name]]
        for bank, prompts in used.items():
            repeated = itertools.islice(itertools.cycle(prompts), config.synthesis.images_per_class)
            groups.append([(f"{bank}-{id_part(name)}-{i:05d}", index, bank, text, row[text]) for i, text in enumerate(repeated)])
    return _plan_table(config, groups)


def _report(run: RunDir, note: Callable[[str], None], name: str, bank: Bank, class_embedding: np.ndarray) -> None:
    """Note and log how diverse a bank is, beside its class-name prompt (float32 (E,)) repeated as often."""
    count = len(bank.accepted)
    if not count:
        raise UserError(
            f"{bank.warning}. Nothing can be generated for this class. What a language model proposed is in "
            f"{run.root / 'proposals'}: delete the file of the class to have the model asked again"
        )
    spread, repeated = diversity(bank.embeddings), diversity(np.repeat(class_embedding[None], count, 0))
    of_bank, of_class = (f"mean cosine {d['mean_cosine']:.3f}, Vendi {d['vendi']:.1f}" for d in (spread, repeated))
    note(
        f"{name}: {count} prompts, {bank.acceptance_rate:.0%} of the candidates accepted, {of_bank} (its class-name prompt {count} "
        f"times: {of_class})"
    )
    if bank.warning:
        note(f"warning: {bank.warning}")
    facts = {"accepted": count, "refused": len(bank.refused), "stopped": bank.stopped, "class_name_prompt": repeated}
    run.log(stage="prompts", class_name=name, **facts, **spread)


def _prompt_table(fold: Fold, banks: dict[str, Bank], class_prompts: dict[str, str]) -> pa.Table:
    """Return prompts.parquet: every candidate of every class with its verdict, and the class-name prompts."""
    rows = []
    for name, bank in banks.items():
        index = fold.index_names.index(name)
        for c in sorted([*bank.accepted, *bank.refused], key=lambda c: c.order):
            rows.append((name, index, HDIG, c.text, c.order, not c.why, c.similarity, c.nearest, c.why))
        rows.append((name, index, CLASS_NAME, class_prompts[name], 0, True, None, "", ""))
    columns = ("class", "class_id", "bank", "prompt", "order", "accepted", "similarity", "nearest", "why")
    return pa.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in rows])


def check_labelled(run: RunDir, draw: int) -> None:
    """Raise UserError unless every planned sample of a draw has its labels or a note."""
    planned, done = read_planned_samples(run)["sample_id"], run.draw(draw).complete()["sample_id"]
    missing = len(planned) - pc.sum(pc.is_in(planned, done.combine_chunks())).as_py()
    if missing:
        raise UserError(
            f"{run.root}: {missing} of {len(planned)} samples of draw {draw} have no label yet; run `syn4seg refine` (or "
            "`syn4seg run`) with the same configuration first"
        )
