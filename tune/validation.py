"""What is settled before a sweep starts: its directory, how many trials it has, and the real images on which they are compared."""

from __future__ import annotations

from syn4seg.config.tree import Config, annotated, differences
from syn4seg.errors import UserError
from syn4seg.seeds import seeded
from syn4seg.stages.base_data import shuffled_base_images
from syn4seg.stages.setup import draws_of, load_dataset, support_of
from syn4seg.store.files import read_bytes, read_json, write_atomically, write_json
from syn4seg.store.partials import remove_abandoned
from syn4seg.store.rundir import RunDir
from syn4seg.store.seals import FOLDER
from tune.records import SweepDir
from tune.space import Range, Study, apply_overrides, grid


class AllTrialsFailed(UserError):
    """No trial of a sweep ended well."""


def trial_count(study: Study, trials: int) -> int:
    """Return how many trials a sweep has: those of the grid and the configuration's own, or `trials`."""
    return 1 + len(grid(study)) if study.sampler == "grid" else trials


def validation_images(study: Study, config: Config) -> list[str] | None:
    """Return the train-list images on which trials are compared: novel ones, then base ones; None for the test list.

    None of them is support of any draw at any value of the study, is replayed, or makes prototypes.

    Raises:
        UserError: there are too few.
    """
    if study.test:
        return None
    corners = _corners(study, config)
    dataset, fold = load_dataset(corners[0])
    used: set[str] = set()
    for corner in corners:
        for draw in draws_of(corner):
            used |= {i for ids in support_of(corner, dataset, fold, draw).values() for i in ids}
    drawn = max((shuffled_base_images(corner, dataset, fold) for corner in corners), key=len)
    trained = max(max(corner.novel.replay_images, corner.labeling.base_prototype_images) for corner in corners)
    used |= set(drawn[:trained])
    chosen: list[str] = []
    for k in fold.novel:
        ids = sorted(i for i in dataset.train if dataset.areas(i).get(k, 0) >= config.data.min_support_area and i not in used)
        if len(ids) < study.validation.novel_images:
            raise UserError(
                f"study: validation.novel_images={study.validation.novel_images}: class {fold.names[k - 1]!r} has "
                f"only {len(ids)} images in the train list that no draw uses as support; lower it, or use a "
                "smaller data.draws"
            )
        order = seeded("validation", study.seed, k).permutation(len(ids))[: study.validation.novel_images]
        chosen += [ids[i] for i in order]
        used |= set(chosen)
    shows = set(fold.base)
    base = [i for i in drawn[trained:] if i not in used and shows & dataset.areas(i).keys()][: study.validation.base_images]
    if len(base) < study.validation.base_images:
        raise UserError(
            f"study: validation.base_images={study.validation.base_images}: only {len(base)} base training images are "
            "neither replayed nor make prototypes; lower it, or novel.replay_images"
        )
    return [*chosen, *base]


def _corners(study: Study, config: Config) -> list[Config]:
    """Return the configurations of a study that may draw other support or base images: every value of every key of such draws."""
    corners = [apply_overrides(config, study.set)]
    for key, space in study.space.items():
        if key.startswith(("data.", "novel.replay_images", "labeling.base_prototype_images", "base.images", "seed")):
            if isinstance(space, Range) and not space.whole and space.step is None:
                raise UserError(
                    f"study: space.{key}: it decides which images support is drawn from, so it needs a list or "
                    "a range with a step: else validation images cannot be kept apart from the support"
                )
            if isinstance(space, Range):
                corners += [
                    apply_overrides(config, {**study.set, key: params[key]})
                    for params in grid(study.model_copy(update={"space": {key: space.model_copy(update={"log": False})}}))
                ]
            else:
                corners += [apply_overrides(config, {**study.set, key: value}) for value in space]
    return corners


def open_sweep(sweep: SweepDir, study: Study, config: Config, resume: bool) -> None:
    """Open the directory of a sweep, new or continued, and write config.yaml and study.json.

    Raises:
        UserError: a study is there and `resume` was not asked for, or it is another one (the differences are listed).
    """
    settings, text = study.model_dump(mode="json"), annotated(config).encode()
    if sweep.study.exists():
        if not resume:
            raise UserError(f"--out {sweep.root}: holds a study already; add --resume to go on with it, or use another --out")
        before = RunDir(sweep.root).stored()
        changed = differences(read_json(sweep.study), settings, "study.")
        changed = [line for line in changed if not line.startswith("study.trials:")]
        changed += differences(before.science() if before else {}, config.science())
        changed += differences({"data": _measured(before)} if before else {}, {"data": _measured(config)})
        if changed:
            lines = "\n  ".join(changed)
            raise UserError(
                f"--resume {sweep.root}: the study was begun otherwise:\n  {lines}\ngive the same configuration and "
                "study, or use another --out"
            )
    elif resume:
        raise UserError(f"--resume: there is no study in {sweep.root}; leave --resume out to begin one")
    elif _holds_more(sweep, text):
        raise UserError(f"--out {sweep.root}: not empty and not a study; choose another folder")
    for folder in (sweep.root, sweep.root / FOLDER, sweep.record(0).parent):
        remove_abandoned(folder)
    write_atomically(sweep.config, text)
    write_json(sweep.study, settings)


def _holds_more(sweep: SweepDir, text: bytes) -> bool:
    """Return whether a folder holds anything else than a process may have left that died before it wrote study.json.

    Args:
        text: of the configuration that is to be written.
    """
    for path in sweep.root.iterdir() if sweep.root.is_dir() else ():
        unfinished = path.name.startswith((f".{sweep.config.name}.", f".{sweep.study.name}.")) and path.name.endswith(".partial")
        if not unfinished and not (path == sweep.config and path.is_file() and read_bytes(path) == text):
            return True
    return False


def _measured(config: Config) -> dict[str, int]:
    return {"draws": config.data.draws, "first_draw": config.data.first_draw}
