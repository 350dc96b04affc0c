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
    generator.add_argument("--images", type=int, default=400_000, help="images the transformer sees (default: %(default)s)")
    generator.add_argument("--pool", type=int, default=49_152, help="drawn scenes encoded to latents (default: %(default)s)")
    generator.add_argument("--autoencoder-steps", type=int, default=1800)
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
    from tools import generator

    vae = generator.train_autoencoder(arguments.work, arguments.autoencoder_steps)
    net, facts = generator.train_diffusion(arguments.work, vae, arguments.images, arguments.pool, compiled=True)
    command = f"python -m tools generator --images {arguments.images} --pool {arguments.pool} --work DIR --out DIR"
    generator.export(net, vae, arguments.out, {"command": command, **facts})


def _judge(arguments: argparse.Namespace) -> None:
    import json

    from tools import judge
    from tools.checkpoint import write_card

    reader = judge.train_judge(arguments.work)
    generated, _ = judge.judge_generator(reader, arguments.out)
    drawn = judge.accuracy(reader, *judge.drawn("judge-held", 0, 512))
    print(json.dumps({"generated": generated, "drawn": drawn}))
    card = arguments.out / "card.json"
    facts = json.loads(card.read_text()) if card.is_file() else {}
    facts |= {"read off 512 generated images": generated, "read off 512 drawn images": drawn}
    write_card(arguments.out, "embedded-sd3: a small StableDiffusion3Pipeline of the embedded world", facts)


def main() -> None:
    arguments = _parser().parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    {"sam": _sam, "base": _base, "generator": _generator, "judge": _judge}[arguments.network](arguments)


if __name__ == "__main__":
    main()
