"""`python -m tools WHAT`: trains one of the packaged networks; started again, it resumes."""

from __future__ import annotations

import argparse
from pathlib import Path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools", description=__doc__)
    networks = parser.add_subparsers(dest="network", required=True)
    what = {
        "sam": "the embedded SAM, on random shapes (about 14 CPU-minutes)",
        "base": "the base segmenters of the four folds (8 CPU-minutes, and 3 each)",
        "generator": "the small Stable Diffusion 3 pipeline (hours; see its card)",
        "judge": "score a generator folder: does a classifier read the prompt off its images?",
    }
    for name, text in what.items():
        one = networks.add_parser(name, help=text)
        one.add_argument("--work", type=Path, required=True, help="folder of checkpoints and logs")
        one.add_argument("--out", type=Path, required=True, help="folder of the weights and their card")
        one.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    networks.choices["sam"].add_argument("--steps", type=int, default=1200, help="optimiser steps (default: %(default)s)")
    networks.choices["base"].add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3])
    generator = networks.choices["generator"]
    generator.add_argument("--start", type=Path, help="exported folder to start from, if --work has no checkpoint")
    generator.add_argument("--images", type=int, default=2_000_000, help="stop after as many images; 0 only exports the average")
    generator.add_argument("--decay", type=int, default=0, help="instead, a last leg of as many images, the rate falling to zero")
    generator.add_argument("--shards", type=int, default=24, help="files of 2048 drawn scenes in the pool (default: %(default)s)")
    generator.add_argument("--autoencoder-steps", type=int, default=1800, help="without --start (default: %(default)s)")
    judge = networks.choices["judge"]
    judge.add_argument("--images", type=int, default=512, help="generated images to judge (default: %(default)s)")
    judge.add_argument("--guidance", type=float, default=3.0, help="of the generator (default: %(default)s)")
    judge.add_argument("--steps", type=int, default=16, help="of the generator (default: %(default)s)")
    judge.add_argument("--sheet", type=Path, help="PNG file for a contact sheet of the first 64")
    judge.add_argument("--copies", type=int, default=0, help="look for copies among as many training scenes")
    return parser


def _sam(arguments: argparse.Namespace) -> None:
    from tools import sam

    trained, facts = sam.train(arguments.work, arguments.steps)
    command = f"python -m tools sam --steps {arguments.steps} --work DIR --out DIR"
    sam.export(trained, arguments.out, {"command": command, **facts})


def _base(arguments: argparse.Namespace) -> None:
    from tools import base

    base.build_all(arguments.folds, arguments.work, arguments.out)


def _generator(arguments: argparse.Namespace) -> None:
    from tools import flow, generator

    vae, how = generator.any_autoencoder(arguments.work, arguments.autoencoder_steps, arguments.start)
    net, facts = flow.train(
        arguments.work, vae, arguments.images, start=arguments.start, decay=arguments.decay, shards=arguments.shards
    )
    command = (
        "python -m tools generator [--start FOLDER] --work DIR --out DIR, stopped at any time; then --images 0, or --decay IMAGES"
    )
    generator.export(net.net, net.texts, vae, arguments.out, {"command": command, **facts, "autoencoder": how})


def _judge(arguments: argparse.Namespace) -> None:
    import json

    import cv2
    import numpy as np

    from syn4seg.data import embedded
    from tools import judge
    from tools.checkpoint import write_card
    from tools.generator import product_prompts, scenes, to_tensor

    reader, prompts = judge.train_judge(arguments.work), product_prompts(arguments.images)
    images = judge.generated(arguments.out, prompts, steps=arguments.steps, guidance=arguments.guidance)
    pixels, words = to_tensor(images), judge.targets_of(prompts)
    generated = judge.accuracy(reader, pixels, words)
    for k, name in enumerate(embedded.CLASSES):
        of_class = words[:, 0] == k
        print(name, judge.accuracy(reader, pixels[of_class], words[of_class])["class"])
    drawn = judge.accuracy(reader, *judge.drawn(product_prompts(1024), "judge-held"))
    print(json.dumps({"generated": generated, "drawn": drawn}))
    card = arguments.out / "card.json"
    facts = json.loads(card.read_text()) if card.is_file() else {}
    how = f"read off {len(images)} images of {arguments.steps} steps, guidance {arguments.guidance:g}"
    facts |= {how: generated, "read off 1024 drawn images": drawn}
    if arguments.copies:
        made, fresh = images[:256], scenes(prompts[:256], "fresh")[0]
        least = {who: judge.nearest(some, arguments.copies) for who, some in (("generated", made), ("drawn", fresh))}
        percentiles = {who: [round(float(v), 1) for v in np.percentile(least[who], (0, 5, 50))] for who in least}
        facts[f"nearest of {arguments.copies} training scenes"] = (
            f"RMS in grey levels at 16 x 16 pixels: least, 5th percentile, median {percentiles['generated']}; "
            f"of freshly drawn scenes {percentiles['drawn']}"
        )
        print(facts[f"nearest of {arguments.copies} training scenes"])
    if arguments.sheet:
        cv2.imwrite(str(arguments.sheet), judge.contact_sheet(images[:64], prompts[:64])[..., ::-1])
    write_card(arguments.out, "embedded-sd3: a small StableDiffusion3Pipeline of the embedded world", facts)


def main() -> None:
    arguments = _parser().parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    {"sam": _sam, "base": _base, "generator": _generator, "judge": _judge}[arguments.network](arguments)


if __name__ == "__main__":
    main()
