"""The folder beside the user's: every file with its digest in init.json, so that only what this program wrote is replaced."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from syn4seg.errors import DamagedError, UserError
from syn4seg.store.files import check_writable, explain_errors, read_bytes, read_json, write_atomically, write_json

STATE = "init.json"


class Beside:
    """The folder that is written to.

    Args:
        root: it need not exist.
        source: the folder of the user's, in which it must not lie.

    Raises:
        UserError: it lies in the source, cannot be written, or holds something else.
    """

    def __init__(self, root: Path, source: Path):
        check_writable(str(root), "--to")
        self.root = root
        if Path(os.path.realpath(root)).is_relative_to(os.path.realpath(source)):
            raise UserError(
                f"--to {root}: lies in {source}, which is never changed; expected a folder outside of it: choose another one"
            )
        if root.exists() and not root.is_dir():
            raise UserError(f"--to {root}: is a file; expected a folder that is empty or not there yet: choose another one")
        self._known: dict[str, str] = {}
        if (root / STATE).is_file():
            try:
                state = read_json(root / STATE)
            except DamagedError:
                state = None
            state = state if isinstance(state, dict) else {}
            files = state.get("files")
            if not isinstance(files, dict) or state.get("source") != str(source):
                raise UserError(
                    f"--to {root}: its {STATE} is not of {source}; expected an empty folder, or what `syn4seg init` made of "
                    "the same source: choose another --to"
                )
            self._known = {str(name): str(digest) for name, digest in files.items()}
        elif root.is_dir() and any(root.iterdir()):
            raise UserError(
                f"--to {root}: holds files that `syn4seg init` did not write; expected an empty folder: choose another --to"
            )
        self._source, self._written = str(source), {}
        self._save(self._known)

    def _save(self, files: dict[str, str]) -> None:
        if not (self.root / STATE).is_file() or read_json(self.root / STATE).get("files") != files:
            write_json(self.root / STATE, {"source": self._source, "files": files})

    def _may_write(self, name: str, there: str | None, wanted: str) -> bool:
        """Return whether a file is to be written; `there` is the digest of what is there."""
        self._written[name] = wanted
        if there == wanted:
            return False
        if there is not None and there != self._known.get(name):
            raise UserError(
                f"{self.root / name} was changed since `syn4seg init` wrote it, or is not its own; expected to find it as written: "
                "move it away, or choose another --to"
            )
        return True

    def write(self, name: str, data: bytes) -> None:
        """Write a file, unless it is there already.

        Raises:
            UserError: something else is there.
        """
        path = self.root / name
        there = (
            _digest(read_bytes(path)) if path.is_file() and not path.is_symlink() else "other" if os.path.lexists(path) else None
        )
        if self._may_write(name, there, _digest(data)):
            write_atomically(path, data)

    def link(self, name: str, target: Path) -> None:
        """Make a relative link to a file of the user's, unless it is there already.

        Raises:
            UserError: something else is there.
        """
        path = self.root / name
        with explain_errors(path, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            told = os.path.relpath(os.path.realpath(target), os.path.realpath(path.parent))
            there = f"link {os.readlink(path)}" if path.is_symlink() else "other" if os.path.lexists(path) else None
            if self._may_write(name, there, f"link {told}"):
                path.unlink(missing_ok=True)
                path.symlink_to(told)

    def end(self) -> None:
        """Remember what was written; files of earlier calls that are no longer needed stay where they are."""
        self._save(self._written)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
