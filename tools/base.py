"""The base segmenters of the embedded world, one per fold: `python -m tools base --work DIR --out DIR`.

About three CPU-minutes a fold, after eight for the start that all share (`backbone.py`). Base classes are learned from 6000
drawn images with their true masks, novel objects are background; the last epoch is exported as float16, and the val figures of
the card are measured on that file.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from syn4seg.data.canvas import Canvas
from syn4seg.data.datasets import EmbeddedDataset, fold_of
from syn4seg.segmenter.backbones import load_backbone
from syn4seg.segmenter.base import BaseSchedule, train_base
from syn4seg.segmenter.evaluation import accumulate_confusion, iterate_queries, metrics, predictor_of
from syn4seg.segmenter.network import Segmenter, load_segmenter, save_segmenter
from tools.backbone import CHANNELS, FAMILIES, HOW, pretrain
from tools.checkpoint import write_card

SEED = 0
IMAGES = 6000
SCHEDULE = BaseSchedule(
    epochs=4, batch=8, lr=0.001, head_factor=1.0, weight_decay=0.01, optimizer="adamw", warmup=0.05, background_weight=0.2
)


def build(number: int, work: Path, out: Path, schedule: BaseSchedule = SCHEDULE, images: int = IMAGES) -> dict[str, object]:
    """Train one fold (resuming from `work`), writes `out/fold{number}.safetensors` and returns the facts of its card."""
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    dataset = EmbeddedDataset(train=images, val=300)
    fold = fold_of(dataset, number)
    log, clock = work / f"fold{number}.jsonl", [time.time(), time.process_time()]

    def record(facts: dict) -> None:
        spent = {"seconds": time.time() - clock[0], "cpu_seconds": time.process_time() - clock[1]}
        clock[:] = [time.time(), time.process_time()]
        line = json.dumps({"fold": number, **facts, **{k: round(v, 1) for k, v in spent.items()}})
        with log.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net = Segmenter(load_backbone("embedded"), 1 + len(fold.base), CHANNELS)
    net.load_state_dict(pretrain(work), strict=False)
    train_base(
        net,
        dataset,
        fold,
        dataset.train,
        schedule=schedule,
        augmentation=HOW,
        seed=SEED,
        bfloat16=True,
        checkpoint=work / f"fold{number}.pt",
        progress=record,
    )
    spent = {json.loads(line)["epoch"]: json.loads(line) for line in log.read_text().splitlines()}
    facts: dict[str, object] = {
        "fold": number,
        "novel": [fold.names[k - 1] for k in fold.novel],
        "seed": SEED,
        "data": f"{images} drawn train images of the embedded world; novel objects are background",
        "start": f"a network that tells {FAMILIES} families of random outlines apart, none like a class (tools/backbone.py)",
        "schedule": str(schedule),
        "parameters": sum(p.numel() for p in net.parameters()),
        "loss": round(spent[schedule.epochs]["loss"], 4),
        "minutes": round(sum(s["seconds"] for s in spent.values()) / 60, 1),
        "cpu minutes": round(sum(s["cpu_seconds"] for s in spent.values()) / 60, 1),
    }
    path = out / f"fold{number}.safetensors"
    save_segmenter(net, path, backbone="embedded", facts=facts)
    stored, _ = load_segmenter(path)
    rows = 1 + len(fold.base) + len(fold.novel)
    stream = iterate_queries(stored, dataset, fold, dataset.val, canvas=Canvas(HOW.crop))
    matrix = accumulate_confusion(stream, {"base": predictor_of(stored.classifier)}, rows)["base"]
    figures = metrics(matrix, len(fold.base), len(fold.novel))
    facts["base mIoU on 300 val images"] = round(figures["base"], 4)
    save_segmenter(net, path, backbone="embedded", facts=facts)
    return facts


def build_all(folds: list[int], work: Path, out: Path) -> None:
    """Train the folds asked for and writes the card of all that are in `out`."""
    for number in folds:
        build(number, work, out)
    facts = {path.stem: load_segmenter(path)[1] for path in sorted(out.glob("fold*.safetensors"))}
    command = "python -m tools base --work DIR --out DIR"
    write_card(out, "Base segmenters of the embedded world, one per fold", {"command": command, **facts})
