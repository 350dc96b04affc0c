"""A trained segmenter as one graph for other programs: ONNX and torch.export, from the pixels of an image to probabilities.

Input `image`: uint8 (1, H, W, 3) RGB, upright, any height and width. Output `probabilities`: float32 (1, C, H, W). The whole canvas
is inside: resizing is a product with two matrices that arithmetic makes of H and W, so that only their lengths are dynamic and the
network itself sees one size. Unlike a run, the graph rounds neither the resized image to 8 bits nor the features to float16.
"""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syn4seg.errors import UserError, did_you_mean
from syn4seg.segmenter.model_folder import FILES, ModelConfig
from syn4seg.stages.classifiers import trained_segmenter
from syn4seg.stages.setup import canvas_of
from syn4seg.store.files import write_atomically
from syn4seg.trained.folder import choose, describe_model, public_shape, write_facts

if TYPE_CHECKING:
    from syn4seg.config.tree import Config
    from syn4seg.data.canvas import Canvas
    from syn4seg.data.datasets import Fold
    from syn4seg.segmenter.network import Segmenter
    from syn4seg.store.files import AnyPath
    from syn4seg.store.rundir import RunDir

OPSET = 18
"""Operator set of the ONNX graph."""
FILL = {"plain": (124.0, 116.0, 104.0), "diam": (0.0, 0.0, 0.0)}
"""RGB beside the image on each kind of canvas."""
LONGEST = 16_384
"""Pixels of the longest side that the graph is made for."""


class PixelGraph(nn.Module):
    """A segmenter with its canvas: uint8 (1, H, W, 3) in, probabilities float32 (1, C, H, W) out."""

    fill: Tensor

    def __init__(self, segmenter: Segmenter, canvas: Canvas):
        super().__init__()
        self.segmenter, self.size, self.kind = segmenter.eval(), canvas.size, canvas.kind
        self.register_buffer("fill", torch.tensor(FILL[canvas.kind]).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        pixels = image.permute(0, 3, 1, 2).float()
        lines, across = (torch.arange(side, device=image.device, dtype=torch.float32) for side in pixels.shape[2:])
        height, width = lines[-1] + 1, across[-1] + 1
        rows, columns = self._filled(height, width)
        area = rows < (height if self.kind == "plain" else 0)
        down, right = self._shrinking(lines, rows, height, area), self._shrinking(across, columns, width, area)
        cells = torch.arange(self.size, device=image.device, dtype=torch.float32)
        inside = (cells[:, None] < rows) & (cells[None] < columns)
        canvas = torch.where(inside, down @ pixels @ right.T, self.fill)
        segmenter = self.segmenter
        scores = segmenter((canvas / 255 - segmenter.mean) / segmenter.std)
        scores = F.interpolate(scores, (self.size, self.size), mode="bilinear", align_corners=segmenter.align_corners)
        up, left = self._sampling(cells, lines, rows, height), self._sampling(cells, across, columns, width)
        return (up @ scores @ left.T).softmax(1)

    def _filled(self, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows and columns of the canvas that the image fills, as `Canvas.shape` has them."""
        sides = height.double(), width.double()
        longest = torch.maximum(*sides)
        scaled = [side * (self.size / longest) for side in sides]
        if self.kind == "plain":
            rows, columns = (torch.round(side).clamp_min(1).float() for side in scaled)
        else:
            scaled = [torch.where(side < longest, torch.floor(n), self.size) for side, n in zip(sides, scaled, strict=True)]
            rows, columns = ((torch.floor(side / 8) * 8).clamp_min(8).float() for side in scaled)
        return rows, columns

    def _shrinking(self, source: Tensor, filled: Tensor, length: Tensor, area: Tensor) -> Tensor:
        """Return the matrix (size, length) that brings a side to the canvas: means over areas, or linear between pixels."""
        scale = length / filled
        cells = torch.arange(self.size, device=source.device, dtype=torch.float32)[:, None]
        start, end = cells * scale, (cells + 1) * scale
        means = (torch.minimum(source + 1, end) - torch.maximum(source, start)).clamp_min(0) / scale
        return torch.where(area, means, _hat((cells + 0.5) * scale - 0.5, source, length))

    def _sampling(self, cells: Tensor, target: Tensor, filled: Tensor, length: Tensor) -> Tensor:
        """Return the matrix (length, size) that brings the filled part of the canvas back to the pixels of a side."""
        return _hat((target[:, None] + 0.5) * (filled / length) - 0.5, cells, filled)


def _hat(position: Tensor, points: Tensor, count: Tensor) -> Tensor:
    """Return the weights of linear interpolation at positions (n, 1) between points (m,), of which the first `count` hold."""
    position = torch.minimum(position.clamp_min(0), count - 1)
    return (1 - (position - points).abs()).clamp_min(0)


def check_format(format: str) -> None:
    """Raise UserError unless a model can be written in a format here."""
    if format not in FILES:
        raise UserError(f"--format {format}: expected {', '.join(FILES)}{did_you_mean(format, FILES)}")
    if format == "onnx":
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise UserError(f"--format onnx needs {error.name}: `pip install 'syn4seg-ray[onnx]'`") from None


def write_graph(
    run: RunDir, config: Config, fold: Fold, folder: AnyPath, format: str, *, draw: int | None = None, row: str | None = None
) -> ModelConfig:
    """Write the model of a row as a graph, with config.json and README.md; see `folder.write_model`.

    Args:
        format: "onnx" or "pt2".

    Raises:
        UserError: the row is not trained, or torch cannot export its backbone.
    """
    draw, row = choose(run, config, draw, row)
    segmenter, header = trained_segmenter(config, run, draw, row)
    graph = PixelGraph(segmenter, canvas_of(config))
    try:
        data = (onnx_bytes if format == "onnx" else pt2_bytes)(graph)
    except Exception as error:
        raise UserError(
            f"--format {format}: torch cannot export segmenter.backbone={config.segmenter.backbone} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}); use the format safetensors"
        ) from error
    write_atomically(folder / FILES[format], data)
    digest = hashlib.sha256(data).hexdigest()
    found = describe_model(run, config, fold, draw, row, public_shape(segmenter, header), format, digest)
    write_facts(folder, found)
    return found


def exported(graph: PixelGraph) -> Any:
    """Return the graph as torch exports it, height and width dynamic; no place of this machine is in it."""
    height, width = (torch.export.Dim(name, min=2, max=LONGEST) for name in ("height", "width"))
    example = torch.zeros((1, graph.size + 5, graph.size + 3, 3), dtype=torch.uint8)
    with torch.no_grad(), _quiet():
        program = torch.export.export(graph, (example,), dynamic_shapes={"image": {1: height, 2: width}}, strict=False)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in ("stack_trace", "source_fn_stack", "nn_module_stack", "from_node"):
                    node.meta.pop(key, None)
    return program


def pt2_bytes(graph: PixelGraph) -> bytes:
    """Return the graph as a .pt2 archive, to be read by `torch.export.load`."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(exported(graph), file)
    return file.getvalue()


def onnx_bytes(graph: PixelGraph) -> bytes:
    """Return the graph as ONNX of opset `OPSET`."""
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            exported(graph), opset_version=OPSET, dynamo=True, input_names=["image"], output_names=["probabilities"], verbose=False
        )
    assert program is not None
    proto = program.model_proto
    sides = proto.graph.input[0].type.tensor_type.shape.dim[1:3]
    names = dict(zip((side.dim_param for side in sides), ("height", "width"), strict=True))
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]
    for part in (proto.graph, *proto.functions):
        for node in part.node:
            del node.metadata_props[:]
            node.doc_string = ""
    del proto.metadata_props[:], proto.graph.metadata_props[:]
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    return proto.SerializeToString(deterministic=True)


class _quiet:
    """Hold back what the exporters print and warn of."""

    def __enter__(self) -> None:
        self._caught, self._level = warnings.catch_warnings(), logging.getLogger("torch.onnx").level
        self._caught.__enter__()
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        logging.getLogger("torch.onnx").setLevel(self._level)
        self._caught.__exit__(None, None, None)
