"""The novel stage of a run: one classifier per ablation row and support draw, all from the same cached features.

Features are frozen, so each synthetic, support, replayed and query image is seen by the network once per run; rows,
draws and steps work on the cache. Rows arrive in any order and are sorted by id before they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from syn4seg.config import Config
from syn4seg.data.datasets import Dataset, Fold, image_to_canvas, label_to_canvas
from syn4seg.labeling.enhance import load_on_device
from syn4seg.rundir import RunDir, write_atomically, write_json
from syn4seg.schema import LABEL_STAGES
from syn4seg.stages.plan import CLASS_NAME, HDIG
from syn4seg.stages.setup import draws_of
from syn4seg.stages.support import Registration, register, replay_samples, support_of, support_samples

if TYPE_CHECKING:
    from torch import Tensor

    from syn4seg.segmenter.network import Classifier, Segmenter
    from syn4seg.segmenter.novel import Sample

ROWS = {"support_only": ("", ""), "class_name_raw": (CLASS_NAME, "draft"), "hdig_raw": (HDIG, "draft"),
        "apf": (HDIG, "kept"), "apf_apr": (HDIG, "relabeled"), "syn4seg": (HDIG, "label")}  # fmt: skip
"""Ablation row -> (prompt bank, label column) of the synthetic samples that it trains on."""
RESULT_NAMES = {row: "apr" if row == "apf_apr" else row for row in ROWS}
"""Names of the rows in results.json."""

Rows = Mapping[str, Any]


def start_of(segmenter: Segmenter, prototypes: np.ndarray, fold: Fold) -> Classifier:
    """The base classifier with novel rows imprinted from the support prototypes."""
    import torch

    from syn4seg.segmenter.network import Classifier
    from syn4seg.segmenter.novel import imprint

    base = Classifier(segmenter.weight.detach().cpu().float(), segmenter.bias.detach().cpu().float(), segmenter.cosine)
    return imprint(base, torch.from_numpy(prototypes[list(fold.novel_indices)]))


def train_row(config: Config, fold: Fold, start: Classifier, samples: list[Sample], draw: int) -> Classifier:
    """Fine-tunes one classifier; the seed is the same for every row, so rows differ by their samples alone."""
    from syn4seg.segmenter.novel import NovelSchedule, train_novel

    novel = config.novel
    per_step = {"support": novel.support_batch, "synthetic": novel.synthetic_batch, "replay": novel.replay_batch}
    schedule = NovelSchedule(steps=novel.steps, lr=novel.lr, per_step=per_step, distill=novel.distillation,
                             background_weight=novel.background_weight)  # fmt: skip
    return train_novel(start, samples, base_classes=len(fold.base), schedule=schedule, seed=config.seed + 1000 * draw)


class NovelStage:
    """Caches features as finished samples arrive, then trains every row of every draw and scores it."""

    def __init__(self, config: Config, run: RunDir, dataset: Dataset, fold: Fold):
        self.config, self.run, self.dataset, self.fold = config, run, dataset, fold
        self.segmenter = load_on_device(run, config.placement.device)
        self.replay = replay_samples(config, self.segmenter, dataset, fold)
        self.features: dict[str, Tensor] = {}
        self.labels: dict[int, dict[str, dict[str, Any]]] = {}
        self.registered: dict[int, Classifier] = {}

    def register(self, draw: int) -> Registration:
        """Round 0 of a draw."""
        return register(self.config, self.run, self.segmenter, self.dataset, self.fold, draw, self.replay)

    def add(self, draw: int, rows: Rows) -> None:
        """Takes finished samples of a draw: columns sample_id, bank, image, reason and the four labels."""
        from syn4seg.segmenter.network import frozen_features

        size = self.config.segmenter.size
        for i, sample in enumerate(rows["sample_id"]):
            if sample not in self.features:
                canvas = image_to_canvas(np.asarray(rows["image"][i]), size)
                self.features[sample] = frozen_features(self.segmenter, canvas[None])[0]
            rejected = bool(rows["reason"][i])
            stages = LABEL_STAGES[:2] if rejected else LABEL_STAGES
            columns = {s: label_to_canvas(np.asarray(rows[s][i]), size) for s in stages}
            self.labels.setdefault(draw, {})[sample] = columns | {"bank": rows["bank"][i]}

    def synthetic(self, draw: int, row: str) -> list[Sample]:
        """The synthetic samples of a row: raw and filtered labels of every image, later labels of accepted ones."""
        from syn4seg.segmenter.novel import Sample

        bank, stage = ROWS[row]
        found = []
        for sample, columns in sorted(self.labels.get(draw, {}).items()):
            if columns["bank"] == bank and stage in columns:
                features = self.features[sample]
                found.append(Sample(sample, features, columns[stage], "synthetic", self._trust(draw, features)))
        return found

    def _trust(self, draw: int, features: Tensor) -> np.ndarray | None:
        """Weight float16 (H, W) of each pixel of a synthetic image, or None where every weight is 1."""
        novel, size = self.config.novel, self.config.segmenter.size
        if novel.confidence_weight == 0:
            return None if novel.synthetic_weight == 1 else np.full((size, size), novel.synthetic_weight, np.float16)
        import torch

        from syn4seg.segmenter.network import upsample

        if draw not in self.registered:
            self.registered[draw] = Registration.load(self.run.draw(draw)).classifier_on("cpu")
        with torch.no_grad():
            odds = upsample(self.registered[draw](features.float()[None]), (size, size)).softmax(1)
        sure = odds[0].amax(0).numpy()
        return (novel.synthetic_weight * (1 - novel.confidence_weight * (1 - sure))).astype(np.float16)

    def train(self, draw: int, done: Callable[[str], None]) -> None:
        """Trains every row of a draw that has no checkpoint yet."""
        registration = self.register(draw)
        support = support_samples(self.config, self.segmenter, self.dataset, self.fold,
                                  support_of(self.config, self.dataset, self.fold, draw))  # fmt: skip
        start = start_of(self.segmenter, registration.prototypes, self.fold)
        for row in rows_of(self.config):
            path = self.run.draw(draw).checkpoint(row)
            if not path.is_file():
                classifier = registration.classifier_on("cpu")
                if row != "support_only":
                    samples = [*support, *self.replay, *self.synthetic(draw, row)]
                    classifier = train_row(self.config, self.fold, start, samples, draw)
                save_classifier(path, classifier)
            done(row)

    def evaluate(self, done: Callable[[int, int], None]) -> dict[int, dict[str, np.ndarray]]:
        """Confusion matrix of every draw and row; every query is seen by the network once."""
        from syn4seg.segmenter.evaluation import evaluate, queries

        classifiers = {f"{draw}/{row}": load_classifier(self.run.draw(draw).checkpoint(row))
                       for draw in draws_of(self.config) for row in rows_of(self.config)}  # fmt: skip
        ids = self.dataset.val

        def counted():
            stream = queries(self.segmenter, self.dataset, self.fold, ids, size=self.config.segmenter.size)
            for number, query in enumerate(stream, 1):
                yield query
                done(number, len(ids))

        found = evaluate(counted(), classifiers, len(self.fold.index_names))
        matrices: dict[int, dict[str, np.ndarray]] = {}
        for key, matrix in found.items():
            draw, row = key.split("/")
            matrices.setdefault(int(draw), {})[row] = matrix
        for draw, rows in matrices.items():
            write_json(self.run.draw(draw).root / "confusion.json", rows)
        return matrices


def rows_of(config: Config) -> list[str]:
    """The ablation rows that a config produces."""
    plain = config.synthesis.source == "generate" and config.synthesis.class_name_bank
    return [row for row in ROWS if row != "class_name_raw" or plain]


def save_classifier(path, classifier: Classifier) -> None:
    """Writes a classifier as safetensors, atomically."""
    from safetensors.torch import save

    write_atomically(path, save({"weight": classifier.weight.contiguous(), "bias": classifier.bias.contiguous()}))


def load_classifier(path) -> Classifier:
    """Reads a classifier.

    Raises:
        ValueError: it has not been trained yet.
    """
    from safetensors.torch import load_file

    from syn4seg.segmenter.network import Classifier

    if not path.is_file():
        raise ValueError(f"{path}: missing; run `syn4seg train` (or `syn4seg run`) before evaluating")
    parts = load_file(path)
    return Classifier(parts["weight"], parts["bias"])


def read_rows(run: RunDir, draw: int, names: tuple[str, ...], rows: Iterable[dict[str, Any]]) -> dict[str, list]:
    """Images and labels of finished samples from disk; faulty ones are left out.

    Args:
        rows: plan rows with sample_id, class_id and bank.
    """
    import json

    from syn4seg.rundir import read_image

    paths = run.draw(draw)
    out: dict[str, list] = {key: [] for key in ("sample_id", "bank", "image", "reason", *LABEL_STAGES)}
    for row in rows:
        name, sample = names[row["class_id"]], row["sample_id"]
        record = json.loads(paths.record(name, sample).read_text())
        if "image" not in record:
            continue
        labels = {s: read_image(paths.label(s, name, sample)) for s in LABEL_STAGES if s in record}
        out["sample_id"].append(sample)
        out["bank"].append(row["bank"])
        out["image"].append(read_image(run.image(name, sample)))
        out["reason"].append(record["reason"])
        for stage in LABEL_STAGES:
            out[stage].append(labels.get(stage, labels["relabeled"]))
    return out
