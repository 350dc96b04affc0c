"""Import of public base checkpoints (BAM, DIaM, BCM, POP, EKT, CAPL) into a `Segmenter`, told apart by their tensors' names.

All are a ResNet with the deep stem, pyramid pooling over 1, 2, 3 and 6 cells and a 3x3 bottleneck. What differs is taken from
the repositories' code (for POP's head, whose file was not at hand, from EKT and SegLand, which build on it and agree):

- BAM's base learner: `cls` is bottleneck and linear classifier in one; `encoder.*` repeats `layer0` to `layer4`.
- DIaM, BCM: the same network; `cls.0` and `cls.1` are named `bottleneck`, and `cls.4` `classifier` (DIaM, issue 3).
- CAPL: `cls.4` is a 1x1 convolution of the features; `main_proto` are the rows of a cosine classifier, novel ones last.
- POP, EKT: the pooled maps come *before* the backbone's in the bottleneck and are upsampled without aligned corners, a 1x1
  convolution follows, and a class's logit is a small network of the feature's projection on its prototype; the
  background's is that of the residual.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syn4seg.errors import UserError
from syn4seg.seeds import seeded
from syn4seg.segmenter.backbones import load_backbone, read_weights
from syn4seg.segmenter.network import Segmenter
from syn4seg.segmenter.resnet import CHANNELS

BINS = (1, 2, 3, 6)
COUNTER = "num_batches_tracked"
"""Of a batch norm; files of old torch versions have none."""
STEM = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6, "bn3": 7}
"""Places of the stem's layers in `layer0`, where activations count too."""
LAYERS = {6: 50, 23: 101}
"""Which ResNet, by the number of blocks in its third stage."""
CAPL_BASE = {21: 16, 81: 61}
"""Background and base classes among the rows of CAPL's `main_proto` on PASCAL-5i and COCO-20i."""


class Family(NamedTuple):
    """How a public code names its tensors.

    Attributes:
        mark: a tensor that only this family has (the families are tried in order).
        rows: the tensor with one row per class.
        bottleneck: start of the bottleneck's names.
        pooling: start of the pyramid pooling's names.
        dropout: of the bottleneck.
    """

    mark: str
    rows: str
    bottleneck: str
    pooling: str
    dropout: float


FAMILIES = {
    "CAPL": Family("main_proto", "main_proto", "cls", "ppm.features", 0.1),
    "POP": Family("base_emb", "base_emb", "decoder.bottleneck", "decoder.stages", 0.0),
    "BAM": Family("cls.4.bias", "cls.4.weight", "cls", "ppm.features", 0.1),
    "DIaM": Family("bottleneck.0.weight", "classifier.weight", "bottleneck", "ppm.features", 0.1),
}
"""BCM's base checkpoints are DIaM's, EKT's are POP's."""


def import_checkpoint(path: str | Path, classes: int | None = None) -> tuple[Segmenter, dict[str, Any]]:
    """Return the segmenter of a public base checkpoint (float32, eval mode) and facts about it.

    Its logits are those of the public code, but for POP's (see `_pop_rows`) and CAPL's refinement by the query.

    Args:
        path: a torch file of tensors, alone or under "state_dict"; nothing in it is run.
        classes: background and base classes of the fold, 16 on PASCAL-5i and 61 on COCO-20i; None takes the file's.

    Returns:
        The segmenter; and "family", "backbone" (a name for `load_backbone`), "classes" (background included) and "notes",
        sentences on what is not as in the public code.

    Raises:
        UserError: not such a file, tensors are missing or of other shapes, or it has other classes.
    """
    state, what = read_weights(path), f"checkpoint {str(path)!r}"
    name = _family(state, what)
    family, what = FAMILIES[name], f"{what} ({name})"
    backbone = f"resnet{_layers(state, name, what)}-deep"
    count = _classes(_length(state, family.rows, what), name, classes, what)
    width = _length(state, f"{family.bottleneck}.0.weight", what)
    net = Segmenter(
        load_backbone(backbone),
        count,
        width,
        BINS,
        family.dropout,
        cosine=name == "CAPL",
        align_corners=True,
        pool_align_corners=name != "POP",
        project=name in ("CAPL", "POP"),
    )
    own = {k: v.shape for k, v in net.state_dict().items() if k not in ("weight", "bias")}
    names = {k: _public_name(k, name) for k in own}
    tensors = {k: _tensor(state, names[k], what, shape) for k, shape in own.items() if names[k] in state or not k.endswith(COUNTER)}
    if name == "POP":
        pooled, deepest = tensors["bottleneck.0.weight"].split([net.ppm.channels - CHANNELS, CHANNELS], 1)
        tensors["bottleneck.0.weight"] = torch.cat([deepest, pooled], 1)
    net.load_state_dict(tensors, strict=False)
    weight, bias, notes = _rows(net, state, name, count, what)
    net.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    return net.eval(), {"family": name, "backbone": backbone, "classes": count, "notes": notes}


def _family(state: dict[str, Tensor], what: str) -> str:
    for name, family in FAMILIES.items():
        if family.mark in state:
            if "layer0.0.bias" in state:
                raise UserError(f"{what} ({name}) has a VGG16 backbone; expected one of a ResNet-50 or ResNet-101")
            return name
    kinds = {
        "learner_base.1.0.weight": "BAM's whole model; give its base learner (initmodel/PSPNet/.../best.pth)",
        "conv1.weight": "a backbone alone; give it as segmenter.weights",
        "ppm.branches.0.0.weight": "a segmenter of ours without its header; give the .safetensors file",
    }
    for mark, kind in kinds.items():
        if mark in state:
            raise UserError(f"{what} is {kind}")
    raise UserError(
        f"{what} is of no known family ({', '.join(FAMILIES)}): it has none of "
        f"{', '.join(family.mark for family in FAMILIES.values())}, but e.g. {sorted(state)[:3]}"
    )


def _layers(state: dict[str, Tensor], name: str, what: str) -> int:
    start = _public_name("backbone.layer3.", name)
    blocks = len({k.removeprefix(start).split(".")[0] for k in state if k.startswith(start)})
    if blocks not in LAYERS:
        raise UserError(
            f"{what} has {blocks} blocks in {start[:-1]}; expected 6 (ResNet-50) or 23 (ResNet-101). Is the file complete?"
        )
    first = _public_name("backbone.conv1.weight", name)
    if tuple(_tensor(state, first, what).shape[2:]) != (3, 3):
        raise UserError(f"{what}: {first!r} is {tuple(state[first].shape)}; expected the deep stem, (64, 3, 3, 3)")
    return LAYERS[blocks]


def _classes(rows: int, name: str, expected: int | None, what: str) -> int:
    """Return the number of background and base classes of a file whose table of classes has so many rows."""
    count = rows + 1 if name == "POP" else CAPL_BASE.get(rows, rows) if name == "CAPL" else rows
    if name == "CAPL" and expected is not None and expected <= rows:
        return expected
    if expected not in (None, count):
        raise UserError(
            f"{what} has {count} classes, the background included; expected {expected}: 1 + the fold's base classes "
            "(16 on PASCAL-5i, 61 on COCO-20i). Is it of this data set?"
        )
    return count


def _public_name(own: str, name: str) -> str:
    """Return the public name of a tensor of a `Segmenter`, classifier apart."""
    part, _, rest = own.partition(".")
    if part == "backbone":
        layer, _, leaf = rest.partition(".")
        return own if name == "POP" else f"layer0.{STEM[layer]}.{leaf}" if layer in STEM else rest
    index, leaf = rest.rsplit(".", 1)
    if part == "ppm":  # a pooling layer stands before the convolution
        _, branch, layer = index.split(".")
        return f"{FAMILIES[name].pooling}.{branch}.{int(layer) + 1}.{leaf}"
    if name == "POP" and index == "4":  # no dropout stands before the projection
        index = "3"
    return f"{FAMILIES[name].bottleneck}.{index}.{leaf}"


def _tensor(state: dict[str, Tensor], public: str, what: str, shape: torch.Size | None = None) -> Tensor:
    """Return a tensor of the file, floats as float32; raise UserError if it is not there in that shape."""
    if public not in state:
        raise UserError(f"{what} has no tensor {public!r}; is it complete, and a base checkpoint?")
    tensor = state[public]
    if shape is not None and tensor.shape != shape:
        raise UserError(f"{what}: {public!r} is {tuple(tensor.shape)}; expected {tuple(shape)}")
    if not tensor.isfinite().all():
        raise UserError(f"{what}: {public!r} holds NaN or infinity; the file is damaged, or its training failed")
    return tensor.float() if tensor.is_floating_point() else tensor


def _length(state: dict[str, Tensor], public: str, what: str) -> int:
    tensor = _tensor(state, public, what)
    if tensor.ndim == 0:
        raise UserError(f"{what}: {public!r} is a single number; expected a tensor with one row per class or channel")
    return len(tensor)


def _rows(net: Segmenter, state: dict[str, Tensor], name: str, count: int, what: str) -> tuple[Tensor, Tensor, list[str]]:
    """Return classifier weight (count, D) and bias (count,), and notes."""
    width, source = net.weight.shape[1], FAMILIES[name].rows
    if name == "POP":
        return _pop_rows(net, state, what)
    if name == "CAPL":
        rows = _tensor(state, source, what, torch.Size([len(state[source]), width]))
        note = "CAPL's prototypes are as learned; their refinement by the query and by support context is not carried over"
        return rows[:count], torch.zeros(count), [note]
    rows = _tensor(state, source, what, torch.Size([count, width, 1, 1]))
    return rows[..., 0, 0], _tensor(state, source.replace("weight", "bias"), what, torch.Size([count])), []


def _pop_rows(net: Segmenter, state: dict[str, Tensor], what: str) -> tuple[Tensor, Tensor, list[str]]:
    """Return linear rows in place of POP's head.

    POP's small network g has no biases, so g(a v) = a g(v) for a >= 0: with the unit prototype p of a class, its logit
    g((f.p) p) is exactly f.(g(p) p) wherever f.p >= 0. The background's logit, g of the residual f - sum (f.p) p, is not
    linear: its row is the least-squares fit on features drawn from the bottleneck's own batch-norm statistics (our choice).
    """
    width = net.weight.shape[1]
    prototypes = F.normalize(_tensor(state, "base_emb", what, torch.Size([len(state["base_emb"]), width])), dim=1)
    layers = [
        _tensor(state, f"classifier.{i}.weight", what, torch.Size([n, width, 1, 1]))[..., 0, 0]
        for i, n in ((0, width), (2, width), (4, 1))
    ]

    def g(x: Tensor) -> Tensor:
        return (F.relu(F.relu(x @ layers[0].T) @ layers[1].T) @ layers[2].T)[:, 0]

    features = _drawn_features(net, max(4096, 8 * width))
    target = g(features - features @ prototypes.T @ prototypes).double()
    x = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    half = len(x) // 2
    fit = torch.linalg.lstsq(x[:half], target[:half, None], driver="gelsd").solution[:, 0]
    rest = target[half:]
    share = 1 - ((x[half:] @ fit - rest).square().sum() / (rest - rest.mean()).square().sum().clamp_min(1e-12)).item()
    weight = torch.cat([fit[None, :-1].float(), g(prototypes)[:, None] * prototypes])
    bias = torch.cat([fit[-1:].float(), torch.zeros(len(prototypes))])
    notes = [
        "POP's class logits are exact where a feature does not point away from the prototype, linear beyond",
        f"POP's background is approximated by a linear row (R2 {share:.2f} on features drawn from the batch-norm statistics): "
        "base scores differ from POP's",
    ]
    if "novel_emb" in state:
        notes.append("a fine-tuned checkpoint: its novel classes are left out")
    return weight, bias, notes


@torch.no_grad()
def _drawn_features(net: Segmenter, count: int) -> Tensor:
    """Return features (count, D): ReLU of independent normal channels with the last batch norm's mean and spread, projected."""
    norm, projection = net.bottleneck[1], net.bottleneck[4]
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(projection, nn.Conv2d) and projection.bias is not None
    noise = torch.from_numpy(seeded("pop-background").standard_normal((count, len(norm.weight)))).float()
    return F.relu(norm.bias + noise * norm.weight.abs()) @ projection.weight[..., 0, 0].T + projection.bias
