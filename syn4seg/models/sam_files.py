"""Where the weights of a SAM are: the packaged one, the three published ones by name, a folder, a file. Imports nothing heavy.

`known_sam` answers at once whether `load_sam` will find something; `published_file` fetches a named checkpoint, once.
"""

from __future__ import annotations

import difflib
import http.client
from pathlib import Path
from typing import NamedTuple

from syn4seg.errors import UserError
from syn4seg.models.sam_folders import check_transformers_sam, is_transformers_sam

EMBEDDED = "embedded-sam"
WEIGHTS = Path(__file__).parent.parent / "weights" / EMBEDDED
FOLDER_FILES = ("config.json", "model.safetensors")
SOURCE = "https://dl.fbaipublicfiles.com/segment_anything"


class Published(NamedTuple):
    """One checkpoint that segment-anything published.

    Attributes:
        encoder: width and number of blocks of its image encoder.
        file: its name at `SOURCE`.
        sha256: of the file. (The hexadecimal digits in its name are of another hash, and torch's hub does not check them.)
    """

    encoder: tuple[int, int]
    file: str
    sha256: str


PUBLISHED = {
    "vit-b": Published((768, 12), "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    "vit-l": Published((1024, 24), "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    "vit-h": Published((1280, 32), "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
}
EXPECTED = (
    f'give "{EMBEDDED}", {", ".join(PUBLISHED)} (fetched once), "grabcut" or "none" (no weights), a checkpoint file of '
    "segment-anything (sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth or sam_vit_h_4b8939.pth), or a folder with "
    f"{' and '.join(FOLDER_FILES)} (also one of transformers, or its hub id: SAM, HQ-SAM, SAM 2, SAM 3), or a file of MobileSAM or "
    "EdgeSAM"
)


def known_sam(path_or_name: str | Path) -> None:
    """Check that a SAM is a known name, a file that is not empty, a complete folder, or may be a hub id; fetch nothing.

    Raises:
        UserError: it is none of them.
    """
    if str(path_or_name) in (EMBEDDED, *PUBLISHED):
        return
    if is_transformers_sam(str(path_or_name)):
        return check_transformers_sam(str(path_or_name))
    path = Path(path_or_name)
    if path.is_dir():
        missing = [name for name in FOLDER_FILES if not (path / name).is_file()]
        if missing:
            raise UserError(f"SAM folder {path} has no {' and no '.join(missing)}; {EXPECTED}")
    elif not path.is_file():
        near = difflib.get_close_matches(str(path_or_name), [EMBEDDED, *PUBLISHED], n=1, cutoff=0.7)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"no SAM weights at {path}{meant}; {EXPECTED}")
    elif path.stat().st_size == 0:
        raise UserError(f"SAM weights {path} cannot be read (the file is empty); download the file again, or {EXPECTED}")


def published_file(name: str) -> Path:
    """Return the path of the checkpoint `vit-b`, `vit-l` or `vit-h` in torch's hub cache; fetched, and its hash checked, if
    it is not
    there.

    Raises:
        UserError: it is not there and cannot be fetched, or what came is another file; says which file to put where.
    """
    import torch

    published = PUBLISHED[name]
    path, address = Path(torch.hub.get_dir()) / "checkpoints" / published.file, f"{SOURCE}/{published.file}"
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(path), published.sha256, progress=False)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise UserError(
            f"SAM {name!r}: {address} could not be fetched ({error}). Without network: download it on another "
            f"machine and put it here as {path} (TORCH_HOME moves this cache), or {EXPECTED}"
        ) from None
    return path
