"""The leak audit (method.md 7.9): did test images or novel masks reach what they must not reach, by a run's own records?

Every line is one claim with a verdict: "ok" (the records prove it), "stated" (an overlap that the configuration declares,
with its size), "unknown" (the records cannot prove it, and why), "LEAK".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.data.unlabeled import UnlabeledPhotos
from syn4seg.errors import UserError
from syn4seg.schema import PROMPTS_FILE
from syn4seg.stages.base_data import base_photos
from syn4seg.stages.setup import draws_of
from syn4seg.store.files import exists
from syn4seg.store.images import pixel_digest
from syn4seg.store.readback import BaseFacts, Names, SupportFacts, read_checked
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
    """Return every claim about leaks that the records of a run can decide.

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
    base, records = read_checked(run.base_facts, BaseFacts), [read_checked(d.support_json, SupportFacts) for d in draws]
    support = {image_id for record in records for ids in record["support"].values() for image_id in ids}
    return [
        *_audit_base(config, base, dataset, fold, support),
        *(finding for draw, record in zip(draws, records, strict=True) for finding in _audit_draw(draw, record, dataset)),
        _audit_weights(base),
        _audit_prompts(config, run, support | set(dataset.val)),
        _audit_images(config, run, dataset),
        *_audit_photos(config, dataset),
    ]


def _overlap(claim: str, images: list[str], forbidden: set[str], what: str) -> Finding:
    """Return a finding: a leak if any of the images is forbidden; `what` ends the sentence "N of M ..."."""
    both = sorted(set(images) & forbidden)
    example = f", e.g. {both[0]}" if both else ""
    return Finding(claim, "LEAK" if both else "ok", f"{len(both)} of {len(images)} {what}{example}")


def _audit_base(config: Config, base: dict, dataset: Dataset, fold: Fold, support: set[str]) -> list[Finding]:
    """Return what the base stage saw, and how its checkpoint was chosen."""
    claims = (
        "no validation image reached base training",
        "no support image reached base training",
        "no novel mask reached base training",
        "no checkpoint was chosen on validation images",
    )
    images, chosen = base["images"], base["chosen"]
    if images is None:
        why = f"the base checkpoint was imported (family {base['family']}, sha256 {base['sha256'][:12]}); who trained it knows"
        return [Finding(claim, "unknown", why) for claim in claims]
    shared = _overlap(claims[1], sorted(support), set(images), "support images are base training images")
    if shared.verdict == "LEAK" and config.data.support_from == "train" and config.data.support_reserve == 0:
        evidence = (
            f"{len(support & set(images))} of {len(support)} support images are base training images too, there with their "
            "novel objects as background, as in POP's lists; data.support_reserve > 0 keeps them apart"
        )
        shared = Finding(claims[1], "stated", evidence)
    verdict = "ok" if chosen == "the last epoch" else "LEAK"
    return [
        _overlap(claims[0], images, set(dataset.val), "base training images are on the val list"),
        shared,
        _audit_masks(claims[2], base["label_pixels"], fold),
        Finding(claims[3], verdict, f"base checkpoint: {chosen}; classifiers: the last step"),
    ]


def _audit_masks(claim: str, pixels: dict[str, int] | None, fold: Fold) -> Finding:
    """Return whether labels of base training (pixels by class index) held a novel class."""
    if pixels is None:
        why = "the packaged checkpoint was trained elsewhere, with novel objects as background (its card)"
        return Finding(claim, "unknown", why)
    novel = sum(pixels.get(str(k), 0) for k in fold.novel_indices)
    evidence = f"{novel} of {sum(pixels.values())} label pixels held a novel class index"
    return Finding(claim, "LEAK" if novel else "ok", evidence)


def _audit_weights(base: dict) -> Finding:
    """Return what the backbone had seen before the base stage."""
    claim = "the backbone started without validation images and novel masks"
    weights = base.get("weights")
    if base["origin"] == "packaged" or weights == "none":
        return Finding(claim, "ok", "it started from random numbers")
    if weights in ("imagenet", "imagenet-v1", "imagenet-v2"):
        return Finding(claim, "stated", "ImageNet classification weights, as in all of the field; they saw images, no mask")
    if base["origin"] == "imported":
        return Finding(claim, "unknown", "the base checkpoint was imported")
    return Finding(claim, "unknown", f"weights {weights or 'of the backbone itself'}; who trained them knows")


def _audit_draw(draw: Draw, record: dict, dataset: Dataset) -> list[Finding]:
    """Return what is wrong with support, replay and queries of one draw."""
    name, val, on_val = f"draw {draw.root.name}", set(dataset.val), "images are on the val list"
    support = [s for ids in record["support"].values() for s in ids]
    seen = [*record.get("replayed", []), *record.get("base_prototypes_from", [])]
    claim = f"{name}: no replayed or prototype image is a validation image"
    findings = [_overlap(claim, seen, val, f"replayed and prototype {on_val}")]
    claim = f"{name}: no support image is a query"
    if not exists(draw.queries):
        return [*findings, Finding(claim, "unknown", "not evaluated yet")]
    queries = set(read_checked(draw.queries, Names))
    findings.append(_overlap(claim, support, queries, "support images are queries"))
    if record.get("support_from") == "train":
        findings.append(_overlap(f"{name}: no support image is on the val list", support, val, f"support {on_val}"))
    foreign, claim = len(queries - val), f"{name}: every query is on the val list"
    return [*findings, Finding(claim, "LEAK" if foreign else "ok", f"{foreign} of {len(queries)} queries are not")]


def _audit_prompts(config: Config, run: RunDir, ids: set[str]) -> Finding:
    """Return whether an id of a real image occurs in the prompt bank, which is made of class names and an agent's words."""
    claim = "no validation or support image reached the prompt bank"
    if not config.synthesis.from_prompts:
        return Finding(claim, "ok", "images were imported; there is no prompt bank")
    if not exists(run.prompts):
        return Finding(claim, "unknown", f"{run.prompts.name} is missing")
    prompts = read_parquet(run.prompts, ["prompt"], PROMPTS_FILE)["prompt"].to_pylist()
    words = {word.strip(".,;:!?\"'()") for prompt in prompts for word in prompt.split()}
    named = sorted(word for word in words & ids if len(word) >= 6 and any(c.isdigit() for c in word))  # "50" is a usual word too
    if named:
        return Finding(claim, "LEAK", f"a prompt names the image {named[0]}")
    evidence = (
        f"agent {config.prompts.agent} sees class names and earlier prompts only; none of {len(prompts)} prompts names one of "
        f"{len(ids)} images"
    )
    return Finding(claim, "ok", evidence)


def _audit_images(config: Config, run: RunDir, dataset: Dataset) -> Finding:
    """Return whether an imported image is, pixel by pixel, a validation image."""
    claim = "no synthetic image is an exact copy of a validation image"
    if config.synthesis.from_prompts:
        return Finding(claim, "ok", f"all were generated by {config.synthesis.generator}; `syn4seg verify` compares digests")
    queries = {pixel_digest(dataset.image(s)): s for s in dataset.val}
    imported = run.samples.image_digests()
    same = [queries[d] for d in imported if d in queries]
    if same:
        return Finding(claim, "LEAK", f"{len(same)} of {len(imported)} imported images equal a validation image, e.g. {same[0]}")
    return Finding(claim, "ok", f"none of {len(imported)} imported images equals one of {len(dataset.val)} validation images")


def _audit_photos(config: Config, dataset: Dataset) -> list[Finding]:
    """Return whether an unlabeled photo (`novel.base_photos`) is, pixel by pixel, a validation image."""
    photos, claim = base_photos(config, dataset), "no unlabeled photo is an exact copy of a validation image"
    if not isinstance(photos, UnlabeledPhotos):
        return []
    queries = {pixel_digest(dataset.image(s)): s for s in dataset.val}
    same = [queries[d] for d in (pixel_digest(photos.image(s)) for s in photos.ids) if d in queries]
    evidence = f"{len(same)} of {len(photos.ids)} photos equal one of {len(queries)} validation images" + (
        f", e.g. {same[0]}" if same else ""
    )
    return [Finding(claim, "LEAK" if same else "ok", evidence)]
