"""The networks of `segment_anything`, imported without the `__init__` of that package; the one place that edits `sys.modules`.

`import segment_anything` loads torchvision for its automatic mask generator, which is not used here: two CPU seconds in every
process. So the modules are imported below an empty package of that name, which is taken away again. The test of this file
fails if the installed version no longer has these modules or if they load torchvision themselves.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType


@contextlib.contextmanager
def _without_init(package: str) -> Iterator[None]:
    """Let the block import modules of a package without running the `__init__` of the package."""
    spec = importlib.util.find_spec(package)
    if package in sys.modules or spec is None or spec.submodule_search_locations is None:
        yield
        return
    sys.modules[package] = empty = ModuleType(package)
    empty.__path__ = list(spec.submodule_search_locations)
    try:
        yield
    finally:
        del sys.modules[package]


with _without_init("segment_anything"):
    from segment_anything.build_sam import build_sam_vit_b, build_sam_vit_h, build_sam_vit_l
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
    from segment_anything.modeling.common import LayerNorm2d

BUILDERS = {"vit-b": build_sam_vit_b, "vit-l": build_sam_vit_l, "vit-h": build_sam_vit_h}
"""Published architectures by name."""
NETWORKS = (ImageEncoderViT, LayerNorm2d, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer)
"""The networks that `syn4seg.models.sam` builds others of."""
