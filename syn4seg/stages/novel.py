"""The novel stage of a run: one classifier per ablation row and support draw, all from the same cached features.

Features are frozen, so each synthetic, support, replayed and query image is seen by the network once per run; rows,
draws and steps work on the cache. Rows arrive in any order and are sorted by id before they are used.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from syn4seg.config import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.labeling.enhance import load_on_device
from syn4seg.rundir import RunDir, write_atomically, write_json
from syn4seg.schema import LABEL_STAGES
from syn4seg.stages.plan import CLASS_NAME, HDIG
from syn4seg.stages.setup import draws_of, queries_of
from syn4seg.stages.support import Registration, base_samples, register, support_of, support_samples

if TYPE_CHECKING:
    from torch import Tensor

    from syn4seg.segmenter.evaluation import Predictor
    from syn4seg.segmenter.network import Classifier, Segmenter
    from syn4seg.segmenter.novel import Sample

ROWS = {"support_only": ("", ""), "class_name_raw": (CLASS_NAME, "draft"), "hdig_raw": (HDIG, "draft"),
        "apf": (HDIG, "kept"), "apf_apr": (HDIG, "relabeled"), "syn4seg": (HDIG, "label")}  # fmt: skip
"""Ablation row -> (prompt bank, label column) of the synthetic samples that it trains on."""
RESULT_NAMES = {row: "apr" if row == "apf_apr" else row for row in ROWS}
"""Names of the rows in results.json."""
BASELINE = "baseline/"
"""Prefix of a baseline's name among the rows of a confusion.json."""

Rows = Mapping[str, Any]


def start_of(segmenter: Segmenter, prototypes: np.ndarray, fold: Fold) -> Classifier:
    """The base classifier with novel rows imprinted from the support prototypes."""
    import torch

    from syn4seg.segmenter.novel import imprint

    return imprint(base_classifier(segmenter), torch.from_numpy(prototypes[list(fold.novel_indices)]))


def base_classifier(segmenter: Segmenter) -> Classifier:
    """The 1 + B rows of the base stage, float32 on the CPU."""
    weight, bias = (t.detach().cpu().float() for t in (segmenter.weight, segmenter.bias))
    return segmenter.classifier.replaced(weight, bias)


def train_row(config: Config, fold: Fold, start: Classifier, samples: list[Sample], draw: int) -> Classifier:
    """Fine-tunes one classifier; the seed is the same for every row, so rows differ by their samples alone."""
    from syn4seg.segmenter.novel import NovelSchedule, train_novel

    novel = config.novel
    per_step = {"support": novel.support_batch, "synthetic": novel.synthetic_batch, "replay": novel.replay_batch}
    schedule = NovelSchedule(steps=novel.steps, lr=novel.lr, per_step=per_step, distill=novel.distillation,
                             background_weight=novel.background_weight,
                             merge_support=config.data.base_in_support == "background")  # fmt: skip
    return train_novel(start.to(training_device(config)), samples, base_classes=len(fold.base), schedule=schedule,
                       seed=config.seed + 1000 * draw)  # fmt: skip


def training_device(config: Config) -> str:
    """Where classifiers are trained: a GPU if this process has one, unless `placement.device` forbids it."""
    import torch

    return "cuda" if torch.cuda.is_available() and config.placement.device != "cpu" else "cpu"


def free_gpu() -> None:
    """Gives back the GPU memory that this process no longer uses, for the actors that come next."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class FeatureCache:
    """Frozen features by sample id: in memory up to `limit` bytes, then in files of a folder that goes with the cache."""

    def __init__(self, root: Path, limit: int = 4 * 2**30):
        self.root, self.room = root, limit
        self.kept: dict[str, Tensor] = {}
        self.folder: tempfile.TemporaryDirectory | None = None

    def __contains__(self, sample: str) -> bool:
        return sample in self.kept

    def __getitem__(self, sample: str) -> Tensor:
        return self.kept[sample]

    def put(self, sample: str, features: Tensor) -> None:
        """Keeps float16 (D, h, w)."""
        size = features.numel() * features.element_size()
        if size <= self.room:
            self.room -= size
            self.kept[sample] = features
            return
        import torch

        self.folder = self.folder or tempfile.TemporaryDirectory(prefix=".features-", dir=self.root)
        path = Path(self.folder.name) / f"{len(self.kept)}.npy"
        np.save(path, features.numpy())
        self.kept[sample] = torch.from_numpy(np.load(path, mmap_mode="c"))


class NovelStage:
    """Caches features as finished samples arrive, then trains every row of every draw and scores it."""

    def __init__(self, config: Config, run: RunDir, dataset: Dataset, fold: Fold):
        self.config, self.run, self.dataset, self.fold = config, run, dataset, fold
        self.segmenter = load_on_device(run, config.placement.device)
        self.base = base_samples(config, self.segmenter, dataset, fold)
        self.features = FeatureCache(run.root)
        self.labels: dict[int, dict[str, dict[str, Any]]] = {}
        self.registered: dict[int, Classifier] = {}

    def register(self, draw: int) -> Registration:
        """Round 0 of a draw."""
        return register(self.config, self.run, self.segmenter, self.dataset, self.fold, draw, self.base)

    def add(self, draw: int, rows: Rows) -> None:
        """Takes finished samples of a draw: columns sample_id, bank, image, reason and the four labels."""
        from syn4seg.segmenter.network import frozen_features

        canvas = self.config.segmenter.on_canvas()
        for i, sample in enumerate(rows["sample_id"]):
            if sample not in self.features:
                image = canvas.image(np.asarray(rows["image"][i]))
                self.features.put(sample, frozen_features(self.segmenter, image[None])[0])
            rejected = bool(rows["reason"][i])
            stages = LABEL_STAGES[:2] if rejected else LABEL_STAGES
            columns = {s: canvas.label(np.asarray(rows[s][i])) for s in stages}
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

        if draw not in self.registered:
            self.registered[draw] = Registration.load(self.run.draw(draw)).classifier_on("cpu")
        with torch.no_grad():
            odds = self.registered[draw].pixels(features.float()[None], size).softmax(1)
        sure = odds[0].amax(0).numpy()
        return (novel.synthetic_weight * (1 - novel.confidence_weight * (1 - sure))).astype(np.float16)

    def train(self, draw: int, done: Callable[[str], None]) -> None:
        """Trains every row of a draw that has no checkpoint yet."""
        registration = self.register(draw)
        support = self.support(draw)
        start = start_of(self.segmenter, registration.prototypes, self.fold)
        for row in rows_of(self.config):
            path = self.run.draw(draw).checkpoint(row)
            if not path.is_file():
                classifier = registration.classifier_on("cpu")
                if row != "support_only":
                    samples = [*support, *self.base.replayed, *self.synthetic(draw, row)]
                    classifier = train_row(self.config, self.fold, start, samples, draw)
                save_classifier(path, classifier)
            done(row)
        self.labels.pop(draw, None)

    def support(self, draw: int) -> list[Sample]:
        """The support samples of a draw."""
        chosen = support_of(self.config, self.dataset, self.fold, draw)
        return support_samples(self.config, self.segmenter, self.dataset, self.fold, chosen)

    def predictors(self, draw: int) -> dict[str, Predictor]:
        """What is scored in a draw: the classifier of every row, then the baselines, named `baseline/NAME`."""
        import torch

        from syn4seg.baselines import build
        from syn4seg.segmenter.evaluation import predictor_of

        device, found = self.segmenter.weight.device, {}
        for row in rows_of(self.config):
            found[row] = predictor_of(load_classifier(self.run.draw(draw).checkpoint(row)).to(device))
        if self.config.evaluation.baselines:
            base, support = base_classifier(self.segmenter).to(device), self.support(draw)
            prototypes = torch.from_numpy(self.register(draw).prototypes[: len(base.weight)])
            for name in self.config.evaluation.baselines:
                found[BASELINE + name] = build(name, base=base, support=support, base_classes=len(self.fold.base),
                                               novel_classes=len(self.fold.novel), shots=self.config.data.shots,
                                               seed=self.config.seed, prototypes=prototypes)  # fmt: skip
        return found

    def evaluate(self, done: Callable[[int, int], None]) -> dict[int, dict[str, np.ndarray]]:
        """Confusion matrix of every draw and row; every query is seen by the network once, and scored in its draws."""
        from syn4seg.segmenter.evaluation import evaluate, queries

        asked: dict[str, set[str]] = {}
        predictors: dict[str, Predictor] = {}
        for draw in draws_of(self.config):
            chosen = queries_of(self.config, self.dataset, support_of(self.config, self.dataset, self.fold, draw), draw)
            write_json(self.run.draw(draw).queries, chosen)
            asked[str(draw)] = set(chosen)
            predictors |= {f"{draw}:{row}": predict for row, predict in self.predictors(draw).items()}
        ids = [s for s in self.dataset.val if any(s in of_draw for of_draw in asked.values())]

        def counted():
            stream = queries(self.segmenter, self.dataset, self.fold, ids, canvas=self.config.segmenter.on_canvas(),
                             space=self.config.evaluation.space)  # fmt: skip
            for number, query in enumerate(stream, 1):
                yield query
                done(number, len(ids))

        found = evaluate(counted(), predictors, len(self.fold.index_names),
                         lambda name, sample_id: sample_id in asked[name.partition(":")[0]])  # fmt: skip
        matrices: dict[int, dict[str, np.ndarray]] = {}
        for key, matrix in found.items():
            draw, _, row = key.partition(":")
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

    tensors = {"weight": classifier.weight.cpu().contiguous(), "bias": classifier.bias.cpu().contiguous()}
    facts = {"cosine": json.dumps(classifier.cosine), "align_corners": json.dumps(classifier.align_corners)}
    write_atomically(path, save(tensors, metadata=facts))


def load_classifier(path) -> Classifier:
    """Reads a classifier.

    Raises:
        ValueError: it has not been trained yet.
    """
    from safetensors import safe_open

    from syn4seg.segmenter.network import Classifier

    if not path.is_file():
        raise ValueError(f"{path}: missing; run `syn4seg train` (or `syn4seg run`) before evaluating")
    with safe_open(path, "pt") as f:
        facts = {key: json.loads(text) for key, text in (f.metadata() or {}).items()}
        rows = f.get_tensor("weight"), f.get_tensor("bias")
    return Classifier(*rows, cosine=facts.get("cosine", False), align_corners=facts.get("align_corners", False))


def read_rows(run: RunDir, draw: int, names: tuple[str, ...], rows: Iterable[dict[str, Any]]) -> dict[str, list]:
    """Images and labels of finished samples from disk; faulty ones are left out.

    Args:
        rows: plan rows with sample_id, class_id and bank.
    """
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
