"""Any convolutional or hierarchical model of timm as a dense feature map: `timm:NAME` (extra `timm`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from syn4seg.errors import UserError
from syn4seg.segmenter.efficientnet import JoinedFeatures

PREFIX = "timm:"
STRIDES = (8, 16, 32)


class TimmFeatures(nn.Module):
    """The maps of strides 8, 16 and 32 of a timm model, joined at stride 16 (see `JoinedFeatures`)."""

    stride = 16

    def __init__(self, name: str, pretrained: bool):
        super().__init__()
        timm = _import_timm(name)
        try:
            model = timm.create_model(name, pretrained=pretrained, features_only=True)
        except Exception as error:  # timm raises whatever its hub client does
            raise UserError(f"backbone '{PREFIX}{name}': {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        taken = [i for i, stride in enumerate(model.feature_info.reduction()) if stride in STRIDES]
        if [model.feature_info.reduction()[i] for i in taken] != list(STRIDES):
            raise UserError(
                f"backbone '{PREFIX}{name}' has maps of the strides {model.feature_info.reduction()}; expected 8, 16 and 32 among "
                "them: take a convolutional or hierarchical model, or name a transformers backbone by its folder"
            )
        self.model, self.taken, self.join = model, taken, JoinedFeatures()
        self.channels = sum(model.feature_info.channels()[i] for i in taken)
        facts: dict[str, Any] = model.default_cfg
        self.normalisation = _three(facts["mean"]), _three(facts["std"])

    def forward(self, x: Tensor) -> Tensor:
        maps = self.model(x)
        maps = [maps[i] for i in self.taken]
        return self.join(maps, maps[1].shape[2:])


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def check_timm(name: str) -> None:
    """Raise UserError unless timm is installed and knows a model."""
    timm = _import_timm(name)
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.partition('.')[0]}*")[:5]
        hint = f"; there are e.g. {', '.join(near)}" if near else ""
        raise UserError(f"backbone '{PREFIX}{name}': timm has no such model{hint}")


def _import_timm(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise UserError(
            f"backbone '{PREFIX}{name}' needs timm, which is not installed: `pip install 'syn4seg-ray[timm]'` "
            "(or `pip install timm`)"
        ) from None
    return timm
