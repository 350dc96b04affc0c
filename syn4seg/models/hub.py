"""Where the folder of a diffusers pipeline is, and whether it is whole: headers and file lengths are read, no weight is loaded.

Every way in which a model can be missing has its own message and its own remedy: gated, unknown, offline, cut short, no
room on the disk. Each half of the pipeline fetches only its own files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from syn4seg.errors import UserError
from syn4seg.models.families import OTHER_TASK, SD3, has_weights, part_names

TEXT = ("tokenizer", "tokenizer_2", "tokenizer_3", "text_encoder", "text_encoder_2", "text_encoder_3")
IMAGE = ("transformer", "vae", "scheduler")
CLASSES = {
    "transformer": ("SD3Transformer2DModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModelWithProjection",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "text_encoder_3": ("T5EncoderModel",),
}
"""The parts of a Stable Diffusion 3 with weights, and the classes that each may be of."""
GATED = re.compile(r"stabilityai/stable-diffusion-3|black-forest-labs/FLUX\.\d-dev")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?")
INSTEAD = "without any download: synthesis.model=renderer or synthesis.model=embedded-sd3"
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format itself
Fetch = Callable[..., str]
"""`huggingface_hub.snapshot_download`, or a stand-in with its arguments."""


def locate_model(model: str, parts: tuple[str, ...], fetch: Fetch | None = None) -> tuple[Path, dict[str, Any]]:
    """Return the local folder that holds `parts` of a model, whole, and its model_index.json; a hub model is fetched.

    Args:
        model: a folder, or a hub id such as "stabilityai/stable-diffusion-3.5-large", with `@REVISION` for one of its commits,
            branches or tags.
        parts: names of parts (see `families.part_names`), or a file such as "transformer/config.json"; no other file is fetched.
        fetch: in place of `huggingface_hub.snapshot_download`.

    Raises:
        UserError: the model is not there, not of this kind, incomplete or damaged; the text says what to do.
    """
    folder = Path(model)
    local = bool(model) and folder.is_dir()
    if not local:
        folder = _fetched(_checked_id(model), parts, fetch)
    index = _index(model, folder)
    for problem in (*missing_components(folder, index, parts), *find_damage(folder, index, parts)):
        again = "copy or download this file again" if local else "delete it, and it is fetched again"
        raise UserError(f"model {model!r}: {problem}; {again}, whole ({folder})")
    return folder, index


def check(model: str) -> None:
    """Check everything about a folder or hub id that can be checked without loading weights or using the network.

    A hub model passes if its snapshot in the cache is whole, or if it can still be fetched as far as one can tell here.

    Raises:
        UserError: as `locate_model`; or the model must be fetched and the machine is offline, or it is gated and no token is set.
    """
    if model and Path(model).is_dir():
        locate_model(model, _all_parts(_index(model, Path(model))))
        return
    folder = _cached(_checked_id(model))
    if folder is not None:
        index = _index(model, folder)
        for problem in find_damage(folder, index, _all_parts(index)):
            raise UserError(f"model {model!r}: {problem}; delete it, and it is fetched again ({folder})")
        if not list(missing_components(folder, index, _all_parts(index))):
            return
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError(_offline(model))
    if GATED.match(model) and get_token() is None:
        raise UserError(_no_token(model))


def read_index(model: str, fetch: Fetch | None = None) -> dict[str, Any]:
    """Return the model_index.json of a folder or hub id, which alone is fetched.

    Raises:
        UserError: as `locate_model`.
    """
    folder = Path(model)
    return _index(model, folder if model and folder.is_dir() else _fetched(_checked_id(model), (), fetch))


def locate_configs(model: str, fetch: Fetch | None = None) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a model, of which only configurations and tokenizers need be there, and its model_index.json.

    A hub model's are fetched: some megabytes, no weight.

    Raises:
        UserError: as `locate_model`.
    """
    folder = Path(model)
    if not (model and folder.is_dir()):
        folder = _fetched(_checked_id(model), ("*/*config.json", "scheduler/*", "tokenizer/*", "tokenizer_?/*"), fetch)
    return folder, _index(model, folder)


def _all_parts(index: dict[str, Any]) -> tuple[str, ...]:
    if index["_class_name"] == SD3:
        return (*IMAGE, *TEXT)
    text, image = part_names(index)
    return (*text, *image)


def revision(folder: Path) -> str:
    """Return the commit of a hub snapshot, or "configs:" and a hash of every JSON file of a plain folder's parts."""
    if folder.parent.name == "snapshots":
        return folder.name
    total = hashlib.blake2b(digest_size=8)
    for path in sorted([*folder.glob("model_index.json"), *folder.glob("*/*config.json")]):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return f"configs:{total.hexdigest()}"


def cached_revision(model: str) -> str | None:
    """Return the commit of a hub model's snapshot on this machine, whole or not; None where there is none, or it is no hub id."""
    if Path(model).is_dir() or not HUB_ID.fullmatch(model) or model.startswith("."):
        return None
    folder = _cached(model)
    return revision(folder) if folder is not None else None


def _checked_id(model: str) -> str:
    if not HUB_ID.fullmatch(model) or model.startswith("."):
        raise UserError(
            f"model {model!r} is neither a folder nor a hub id such as stabilityai/stable-diffusion-3.5-large; {INSTEAD}"
        )
    return model


def _index(model: str, folder: Path) -> dict[str, Any]:
    """Return the checked model_index.json."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
    except FileNotFoundError:
        names = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise UserError(
            f"model {model!r} has no model_index.json (found: {names}); expected a folder as diffusers' "
            f"save_pretrained writes it, not the one above or below; {INSTEAD}"
        ) from None
    except ValueError as error:
        raise UserError(f"model {model!r}: model_index.json is not JSON ({error}); fetch the model again") from None
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(kind, str) or not kind.endswith("Pipeline") or OTHER_TASK.search(kind):
        raise UserError(
            f"model {model!r} is a {kind}; expected a text-to-image pipeline of diffusers, such as "
            f"stabilityai/stable-diffusion-3.5-large; {INSTEAD}"
        )
    for name, classes in CLASSES.items() if kind == SD3 else ():
        entry = index.get(name)
        have = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if have not in classes and (have is not None or name in IMAGE):
            raise UserError(f"model {model!r}: its {name} is a {have}; expected {' or '.join(classes)}; {INSTEAD}")
    return index


def present_components(index: dict[str, Any], parts: tuple[str, ...]) -> list[str]:
    """Return those of `parts` that the pipeline has: a Stable Diffusion 3 may be saved without T5."""
    return [name for name in parts if "/" not in name and (index.get(name) or [None])[0]]


def missing_components(folder: Path, index: dict[str, Any], parts: tuple[str, ...]) -> Iterator[str]:
    """Yield one line for every part, config or file of weights that should be there and is not."""
    for name in (p for p in parts if "/" in p and not (folder / p).is_file()):
        yield f"{name} is missing"
    for name in present_components(index, parts):
        part = folder / name
        if not part.is_dir() or not any(part.iterdir()):
            yield f"the folder {name}/ is missing; expected {', '.join(present_components(index, parts))}"
            continue
        config = "scheduler_config.json" if name == "scheduler" else "config.json"
        if (name == "scheduler" or has_weights(index, name)) and not (part / config).is_file():
            yield f"{name}/{config} is missing"
        if not has_weights(index, name):
            continue
        single, lists = _weights(part)
        if not single and not lists:
            names = ", ".join(sorted(p.name for p in part.iterdir())[:6])
            yield f"{name}/ has no weights (found: {names}): no .safetensors file, nor the .index.json of its shards"
        for shards in (_shards(path) for path in lists):
            present = [shard for shard in shards if (part / shard).is_file()]
            for shard in sorted(set(shards) - set(present)):
                yield f"{name}/{shard} is missing ({len(present)} of {len(shards)} shards are there)"


def find_damage(folder: Path, index: dict[str, Any], parts: tuple[str, ...]) -> Iterator[str]:
    """Yield one line for every file that is there but unreadable, cut short, or without the tensors that it is said to hold."""
    for name in (n for n in present_components(index, parts) if has_weights(index, n) and (folder / n).is_dir()):
        single, lists = _weights(folder / name)
        listed: dict[Path, set[str]] = {path: set() for path in single}
        for path in lists:
            if not _shards(path):
                yield f"{name}/{path.name} is damaged: it lists no shard"
            listed |= {folder / name / shard: tensors for shard, tensors in _shards(path).items()}
        for path in (folder / name / "config.json", *listed):
            if not path.is_file():
                continue
            try:
                have = tensors_of(path) if path in listed else json.loads(path.read_text()).keys()
            except (UserError, AttributeError) as error:
                yield f"{name}/{path.name} is cut short or damaged ({error})"
                continue
            if lacking := sorted(listed.get(path, set()) - set(have)):
                yield f"{name}/{path.name} lacks {len(lacking)} tensors that its index lists, such as {lacking[0]}"


def _weights(part: Path) -> tuple[list[Path], list[Path]]:
    """Return files of weights in one piece, and lists of shards, that the libraries would read; variants (.fp16) are not."""
    names = ("diffusion_pytorch_model.safetensors", "model.safetensors")
    return [part / n for n in names if (part / n).is_file()], [
        part / f"{n}.index.json" for n in names if (part / f"{n}.index.json").is_file()
    ]


def _shards(path: Path) -> dict[str, set[str]]:
    """Return shard -> its tensors, of a list of shards; nothing if the list cannot be read or leads out of its folder."""
    tensors_by_shard: dict[str, set[str]] = {}
    try:
        for tensor, shard in json.loads(path.read_text())["weight_map"].items():
            tensors_by_shard.setdefault(str(shard), set()).add(tensor)
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return tensors_by_shard if all(Path(shard).name == shard for shard in tensors_by_shard) else {}


def tensors_of(path: Path) -> set[str]:
    """Return the names of the tensors in a safetensors file, whose length must be what its header says.

    Raises:
        UserError: it is cut short, too long, a Git LFS pointer or no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            raise UserError("it is a Git LFS pointer; `git lfs pull` gets the file itself")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise UserError(f"{size} bytes, less than its own header" if length <= MAX_HEADER else "no safetensors file")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise UserError("its header is no safetensors header") from None
    if size != expected:
        raise UserError(f"{size} of {expected} bytes")
    return set(header) - {"__metadata__"}


def _options(parts: tuple[str, ...]) -> dict[str, Any]:
    """Return what is fetched: these parts, as safetensors in full precision."""
    patterns = ["model_index.json", *(p if "/" in p else f"{p}/*" for p in parts)]
    return {"allow_patterns": patterns, "ignore_patterns": ["*.fp16*", "*.bin", "*.msgpack", "*.onnx*"]}


def _of_hub(model: str) -> dict[str, str]:
    """Return what the hub is asked for: the repository, and the revision behind its @."""
    name, _, revision = model.partition("@")
    return {"repo_id": name} | ({"revision": revision} if revision else {})


def _fetched(model: str, parts: tuple[str, ...], fetch: Fetch | None) -> Path:
    """Return the cached snapshot of a hub model, of which only `parts` are downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path((fetch or snapshot_download)(**_of_hub(model), **_options(parts)))
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        raise UserError(_explained(model, error)) from error


def _cached(model: str) -> Path | None:
    """Return the snapshot in this machine's cache, complete or not; None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(**_of_hub(model), local_files_only=True, **_options(())))
    except LocalEntryNotFoundError:
        return None


def _explained(model: str, error: BaseException) -> str:
    """Return what went wrong while fetching, and the remedy, in one sentence each."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    chain = [e for e in (error, error.__cause__, error.__context__) if e is not None]
    full = (errno.ENOSPC, errno.EDQUOT)
    if any(getattr(e, "errno", None) in full or "No space left" in str(e) for e in chain):
        cache = Path(constants.HF_HUB_CACHE)
        free = shutil.disk_usage(next(p for p in (cache, *cache.parents) if p.is_dir())).free / 2**30
        return (
            f"model {model!r}: the disk became full while fetching it ({free:.1f} GiB free at {cache}); make room, or set "
            "HF_HOME to a larger disk; what has been fetched is kept"
        )
    status = next((e.response.status_code for e in chain if isinstance(e, HfHubHTTPError)), None)
    token, page = get_token(), f"{constants.ENDPOINT}/{_of_hub(model)['repo_id']}"
    if isinstance(error, GatedRepoError):
        if token is None:
            return _no_token(model)
        return (
            f"model {model!r} is gated, and the account of your token has not accepted its licence: log in at {page} as that "
            "account and accept it (a fine-grained token also needs read access to public gated repositories)"
        )
    if status == 401 and token is not None:
        return (
            f"model {model!r}: the hub refuses your token (HF_TOKEN, or `hf auth login`): it is wrong or expired, or may not "
            "read this repository; make a new one at https://huggingface.co/settings/tokens"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"model {model!r}: there is no such folder here and no such model on the hub, or it is private; check the "
            f"spelling at {page}, or set HF_TOKEN to a token that may read it; {INSTEAD}"
        )
    if constants.HF_HUB_OFFLINE:
        return _offline(model)
    if status is not None:
        return f"model {model!r}: the hub answers with status {status}; try again later, or give a local folder"
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"model {model!r}: the hub cannot be reached, and the model is not (or only partly) in this machine's cache "
            f"({constants.HF_HUB_CACHE}); check network and proxy, or {_elsewhere(model)}"
        )
    text = " ".join(str(error).split()) or type(error).__name__
    return f"model {model!r} could not be fetched ({text}); run the same command again, which goes on from here"


def _no_token(model: str) -> str:
    page = f"https://huggingface.co/{_of_hub(model)['repo_id']}"
    return (
        f"model {model!r} is gated, and no token is set: accept its licence at {page}, make a token "
        f"at https://huggingface.co/settings/tokens and set HF_TOKEN (or `hf auth login`); {INSTEAD}"
    )


def _offline(model: str) -> str:
    return (
        f"model {model!r} is not (or only partly) in this machine's cache, and HF_HUB_OFFLINE is set: unset it, or "
        f"{_elsewhere(model)}"
    )


def _elsewhere(model: str) -> str:
    fetch = f"hf download {model.replace('@', ' --revision ')} --local-dir FOLDER"
    return f"fetch it elsewhere with `{fetch}` and set synthesis.model=FOLDER; {INSTEAD}"
