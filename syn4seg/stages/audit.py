"""The leak audit: from a run's own records, did anything of the test or the novel masks reach what it must not reach?

Every line is one claim with a verdict: "ok" (the records prove it), "stated" (an overlap that the configuration declares,
with its size), "unknown" (the records cannot prove it, and why), "LEAK".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.errors import UserError
from syn4seg.stages.setup import draws_of
from syn4seg.store.files import exists, pixel_digest, read_json
from syn4seg.store.rundir import Draw, RunDir
from syn4seg.store.tables import read_parquet

Verdict = Literal["ok", "stated", "unknown", "LEAK"]


@dataclass(frozen=True)
class Finding:
    """One claim and what the records say about it."""

    claim: str
    verdict: Verdict
    evidence: str


def audit_run(config: Config, run: RunDir, dataset: Dataset, fold: Fold) -> list[Finding]:
    """Every claim about leaks that the records of a run can decide.

    Args:
        config: as stored in the run.
        dataset: its data set.

    Raises:
        UserError: the run has no base checkpoint or no registered draw yet.
    """
    draws = [run.draw(k) for k in draws_of(config)]
    missing = [p for p in (run.base_facts, *(d.support_json for d in draws)) if not exists(p)]
    if missing:
        raise UserError(f"{missing[0]}: missing; the audit reads the records of a run that has finished `syn4seg refine`")
    base = read_json(run.base_facts)
    support = [read_json(d.support_json) for d in draws]
    found = _of_base(config, base, dataset, fold, support)
    for draw, chosen in zip(draws, support, strict=True):
        found += _of_draw(draw, chosen, dataset)
    found.append(_of_weights(base))
    return [*found, *_of_prompts(config, run, dataset, support), *_of_images(config, run, dataset)]


def _overlap(claim: str, images: list[str], forbidden: set[str], what: str) -> Finding:
    both = sorted(set(images) & forbidden)
    if both:
        return Finding(claim, "LEAK", f"{len(both)} of {len(images)} {what}, e.g. {both[0]}")
    return Finding(claim, "ok", f"0 of {len(images)} {what}")


def _of_base(config: Config, base: dict, dataset: Dataset, fold: Fold, support: list[dict]) -> list[Finding]:
    """What the base stage saw, and how its checkpoint was chosen."""
    claims = (
        "no validation image reached base training",
        "no support image reached base training",
        "no novel mask reached base training",
        "no checkpoint was chosen on validation images",
    )
    if base["images"] is None:
        why = f"the base checkpoint was imported (family {base['family']}, sha256 {base['sha256'][:12]}); who trained it knows"
        return [Finding(claim, "unknown", why) for claim in claims]
    used = sorted({s for one in support for ids in one["support"].values() for s in ids})
    found = [_overlap(claims[0], base["images"], set(dataset.val), "base training images are on the val list")]
    both = sorted(set(used) & set(base["images"]))
    if both and config.data.support_from == "train" and config.data.support_reserve == 0:
        found.append(
            Finding(
                claims[1],
                "stated",
                f"{len(both)} of {len(used)} support images are base training images too, there "
                "with their novel objects as background, as in POP's lists; data.support_reserve > 0 keeps "
                "them apart",
            )
        )
    else:
        found.append(_overlap(claims[1], used, set(base["images"]), "support images are base training images"))
    found.append(_novel_masks(claims[2], base, fold))
    chosen = base["chosen"]
    found.append(
        Finding(claims[3], "ok" if chosen == "the last epoch" else "LEAK", f"base checkpoint: {chosen}; classifiers: the last step")
    )
    return found


def _novel_masks(claim: str, base: dict, fold: Fold) -> Finding:
    if base["label_pixels"] is None:
        return Finding(
            claim, "unknown", "the packaged checkpoint was trained elsewhere, with novel objects as background (its card)"
        )
    novel = {str(k): base["label_pixels"].get(str(k), 0) for k in fold.novel_indices}
    total = sum(base["label_pixels"].values())
    if any(novel.values()):
        return Finding(claim, "LEAK", f"{sum(novel.values())} of {total} label pixels held a novel class index")
    return Finding(claim, "ok", f"0 of {total} label pixels held a novel class index")


def _of_weights(base: dict) -> Finding:
    """What the backbone had seen before the base stage."""
    claim = "the backbone started without validation images and novel masks"
    weights = base.get("weights")
    if base["origin"] == "packaged" or weights == "none":
        return Finding(claim, "ok", "it started from random numbers")
    if weights == "imagenet":
        return Finding(claim, "stated", "ImageNet classification weights, as in all of the field; they saw images, no mask")
    if base["origin"] == "imported":
        return Finding(claim, "unknown", "the base checkpoint was imported")
    return Finding(claim, "unknown", f"weights {weights or 'of the backbone itself'}; who trained them knows")


def _of_draw(draw: Draw, chosen: dict, dataset: Dataset) -> list[Finding]:
    """Support, replay and queries of one draw."""
    name, support = draw.root.name, [s for ids in chosen["support"].values() for s in ids]
    seen = [*chosen.get("replayed", []), *chosen.get("base_prototypes_from", [])]
    found = [
        _overlap(
            f"draw {name}: no replayed or prototype image is a validation image",
            seen,
            set(dataset.val),
            "replayed and prototype images are on the val list",
        )
    ]
    if not exists(draw.queries):
        return [*found, Finding(f"draw {name}: no support image is a query", "unknown", "not evaluated yet")]
    queries = set(read_json(draw.queries))
    found.append(_overlap(f"draw {name}: no support image is a query", support, queries, "support images are queries"))
    if chosen.get("support_from") == "train":
        found.append(
            _overlap(
                f"draw {name}: no support image is on the val list", support, set(dataset.val), "support images are on the val list"
            )
        )
    strange = queries - set(dataset.val)
    found.append(
        Finding(
            f"draw {name}: every query is on the val list",
            "LEAK" if strange else "ok",
            f"{len(strange)} of {len(queries)} queries are not",
        )
    )
    return found


def _of_prompts(config: Config, run: RunDir, dataset: Dataset, support: list[dict]) -> list[Finding]:
    """The prompt bank is made of class names and an agent's words; no id of a real image occurs in it."""
    claim = "no validation or support image reached the prompt bank"
    if config.synthesis.source != "generate":
        return [Finding(claim, "ok", "images were imported; there is no prompt bank")]
    if not exists(run.prompts):
        return [Finding(claim, "unknown", f"{run.prompts.name} is missing")]
    prompts = read_parquet(run.prompts, ["prompt"])["prompt"].to_pylist()
    words = {word.strip(".,;:!?\"'()") for prompt in prompts for word in prompt.split()}
    ids = set(dataset.val) | {s for one in support for ids in one["support"].values() for s in ids}
    named = sorted(word for word in words & ids if len(word) >= 6 and any(c.isdigit() for c in word))  # "50" is a plain word too
    if named:
        return [Finding(claim, "LEAK", f"a prompt names the image {named[0]}")]
    return [
        Finding(
            claim,
            "ok",
            f"agent {config.prompts.agent} sees class names and earlier prompts only; none of {len(prompts)} "
            f"prompts names one of {len(ids)} images",
        )
    ]


def _of_images(config: Config, run: RunDir, dataset: Dataset) -> list[Finding]:
    """Whether an imported image is, pixel by pixel, a validation image."""
    claim = "no synthetic image is an exact copy of a validation image"
    if config.synthesis.source == "generate":
        return [Finding(claim, "ok", f"all were generated by {config.synthesis.model}; `syn4seg verify` compares digests")]
    queries = {pixel_digest(dataset.image(s)): s for s in dataset.val}
    imported = run.samples.image_digests()
    same = [queries[d] for d in imported if d in queries]
    if same:
        return [Finding(claim, "LEAK", f"{len(same)} of {len(imported)} imported images equal a validation image, e.g. {same[0]}")]
    return [Finding(claim, "ok", f"none of {len(imported)} imported images equals one of {len(dataset.val)} validation images")]
