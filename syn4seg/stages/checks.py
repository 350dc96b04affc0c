"""Every check that can be made before a model loads."""

from __future__ import annotations

from collections.abc import Callable

from syn4seg.baselines import find_baseline
from syn4seg.config.class_words import clash
from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.data.embedded import CLASSES
from syn4seg.errors import DamagedError, UserError
from syn4seg.models.generators import generator_source
from syn4seg.stages import setup
from syn4seg.stages.base_data import base_photos, shuffled_base_images
from syn4seg.stages.model_base import check_base_data
from syn4seg.stages.network_base import network_warnings
from syn4seg.stages.rows import RESULT_NAMES, rows_of
from syn4seg.store.files import exists
from syn4seg.store.readback import Facts, read_checked
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import check_class_name
from syn4seg.store.seals import write_sealed_json


def check(config: Config, run: RunDir | None = None) -> tuple[Dataset, Fold]:
    """Check everything that can be checked before a model loads; return the data set and the fold.

    Args:
        run: the run directory, which may not exist yet; what it holds already needs no model any more.

    Raises:
        UserError: the first thing that is wrong: key, value, what was expected, the remedy.
    """
    for name in config.evaluation.baselines:
        find_baseline(name)
    if config.novel.trains == "decoder" and config.base.is_network:
        raise UserError(
            f"novel.trains=decoder: of base.checkpoint={config.base.checkpoint} it is not known where the decoder begins; expected "
            "all or classifier"
        )
    if config.novel.trains != "classifier":
        trained = {RESULT_NAMES[row] for row in rows_of(config)}
        if absent := [name for name in config.novel.rows if name not in trained]:
            raise UserError(
                f"novel.rows: {absent[0]!r} is no row of this run, which has {', '.join(sorted(trained))}; leave it out, or see "
                "evaluation.rows and evaluation.controls"
            )
    dataset, fold = setup.load_dataset(config)
    for name in fold.index_names:
        check_class_name(name)
    check_base_data(config, dataset, fold)
    canvas = setup.canvas_of(config)
    for draw in setup.draws_of(config):
        for target, ids in setup.support_of(config, dataset, fold, draw).items():
            for image_id in ids:
                if not (canvas.label(dataset.mask(image_id)) == target).any():
                    raise UserError(
                        f"support image {image_id!r} of draw {draw}: class {fold.names[target - 1]!r} has no pixel left "
                        f"on the canvas of {canvas.size} pixels; raise segmenter.size, data.min_support_area or "
                        "data.min_support_pixels"
                    )
    novel = [fold.names[k - 1] for k in fold.novel]
    if unknown := sorted(set(config.prompts.names) - set(fold.names)):
        raise UserError(f"prompts.names: {unknown[0]!r} is no class of the data set; expected some of {', '.join(fold.names[:20])}")
    if same := clash(config.prompts.names, fold.names):
        raise UserError(same)
    if config.synthesis.source == "folder":
        for name in novel:
            setup.imported_files(config, name)
    elif config.synthesis.source == "api":
        setup.image_share(config.synthesis, setup.planned_images(config, fold))
    elif generator_source(config.synthesis.model).world == "embedded" and (foreign := [n for n in novel if n not in CLASSES]):
        raise UserError(
            f"synthesis.model={config.synthesis.model}: cannot draw {foreign[0]!r}; it has {', '.join(CLASSES)}. "
            "Use a Stable Diffusion 3 model, or import images with synthesis.source=folder"
        )
    if config.base.names and not config.base.is_network:
        raise UserError(
            f"base.names says what a network calls the base classes, but base.checkpoint={config.base.checkpoint} is no network of "
            "transformers or torchvision; leave it empty"
        )
    if config.base.checkpoint == "shipped" and not setup.shipped_base(config.data.fold).is_file():
        raise UserError(
            f"base.checkpoint=shipped: no checkpoint for fold {config.data.fold} is packaged; set base.checkpoint=train"
        )
    elif config.base.checkpoint == "train":
        ids = setup.base_images(config, dataset, fold)
        if len(ids) < config.base.batch and (run is None or not run.base.is_file()):
            raise UserError(
                f"base.batch={config.base.batch}: only {len(ids)} training images are left for the base stage "
                f"(base.images={config.base.images}); lower it to {len(ids)} or less, or add images"
            )
    elif config.base.checkpoint != "shipped" and (run is None or not run.base.is_file()):
        from syn4seg.stages.base import check_checkpoint

        check_checkpoint(config, fold)
    check_models(config, run)
    if config.evaluation.by_name:
        from syn4seg.models.sam_named import check_named_sam

        check_named_sam(config.evaluation.by_name, [config.prompts.words(name).name for name in novel])
    return dataset, fold


def check_models(config: Config, run: RunDir | None) -> None:
    """Check that every model which the run will still load exists and fits, as far as that can be decided without loading it.

    Raises:
        UserError: the first model that is missing, damaged or unusable here.
    """
    from syn4seg.labeling.grabcut import WITHOUT_WEIGHTS
    from syn4seg.models.endpoint import endpoint
    from syn4seg.models.generators import check_model
    from syn4seg.models.picture_check import check_picture_model
    from syn4seg.models.renderer import check_speed
    from syn4seg.models.sam_files import known_sam
    from syn4seg.models.support_images import check_support_images
    from syn4seg.prompts.agents import check_agent
    from syn4seg.segmenter.backbones import check_backbone
    from syn4seg.stages.similarity import check_features

    synthesis, prompts, segmenter = config.synthesis, config.prompts, config.segmenter
    if synthesis.from_prompts:
        if run is None or not run.has_images():
            if synthesis.source == "api":
                endpoint(synthesis.base_url, synthesis.key_variable, "synthesis")
                check_speed(setup.speed_of(config), "with synthesis.source=api the network runs elsewhere")
            else:
                check_model(synthesis.model, setup.speed_of(config))
            if synthesis.support == "image_to_image":
                check_support_images(synthesis.model)
        if run is None or not run.plan.is_file():
            check_agent(prompts.agent, llm=prompts.llm, base_url=prompts.base_url, key_variable=prompts.key_variable)
    if synthesis.check:
        check_picture_model(synthesis.check, fetch=True)
    if config.base.checkpoint == "train" and (run is None or not run.base.is_file()):
        try:
            check_backbone(segmenter.backbone, segmenter.weights or "none", segmenter.size)
        except UserError as error:
            raise UserError(f"segmenter.backbone={segmenter.backbone}, segmenter.weights={segmenter.weights}: {error}") from None
    check_features(config)
    try:
        if config.refinement.model not in WITHOUT_WEIGHTS:
            known_sam(config.refinement.model)
    except UserError as error:
        raise UserError(f"refinement.model={config.refinement.model}: {error}") from None


def check_files(
    config: Config, dataset: Dataset, fold: Fold, run: RunDir, progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """Read every photo and mask of the lists once, so that a bad one is found before anything trains; return warnings.

    What was read before is not read again: its digest (names, sizes and times of the files) is kept in the run directory, by
    `note_checked_files`, and in this process.

    Args:
        run: the run directory, which may not exist yet.
        progress: called with how many of how many have been read.

    Raises:
        UserError: the first file that is damaged or does not fit.
    """
    warnings = []
    look = getattr(dataset, "check_files", None)
    if look is not None:
        digest = dataset.files_digest  # pyright: ignore[reportAttributeAccessIssue]
        if digest not in _CHECKED and digest != _noted(run):
            warnings += look(progress)
        _CHECKED.add(digest)
    if config.base.is_network and not (run is not None and exists(run.base)):
        warnings += network_warnings(config, fold)
    if config.novel.base_photos is not None:
        photos, drawn = base_photos(config, dataset), shuffled_base_images(config, dataset, fold)
        for sample_id in drawn[: max(config.base_images_used[:2])]:
            photos.image(sample_id)
    for draw in setup.draws_of(config):
        for target, ids in setup.support_of(config, dataset, fold, draw).items():
            if len(set(ids)) < len(ids):
                name = fold.names[target - 1]
                warnings.append(
                    f"draw {draw}: class {name!r} has only {len(set(ids))} support images; they are repeated to {len(ids)}"
                )
    return warnings


def note_checked_files(dataset: Dataset, run: RunDir) -> None:
    """Keep in the run directory which files `check_files` has read."""
    if (digest := getattr(dataset, "files_digest", None)) is not None and digest != _noted(run):
        write_sealed_json(run.checked_files, {"files": digest})


_CHECKED: set[str] = set()
"""Digests of the files that this process has read and found sound."""


def _noted(run: RunDir) -> str:
    try:
        noted = read_checked(run.checked_files, Facts)
    except (FileNotFoundError, DamagedError):
        return ""
    return str(noted.get("files", ""))
