"""Writes docs/config.md from the code, or checks (`--check`) that it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from syn4seg.config.tree import Config, annotated

PAGE = Path(__file__).with_name("config.md")
TEXT = (
    "# Configuration\n\n"
    "Written by `python docs/make_config.py` from `syn4seg/config/`; the same as `syn4seg config`.\n"
    "Give any key on the command line as `section.key=value`. The sections `placement` and `logging` never change a result.\n\n"
    f"```yaml\n{annotated(Config())}```\n"
)

if "--check" in sys.argv:
    if not PAGE.is_file() or PAGE.read_text() != TEXT:
        sys.exit("docs/config.md is not what the code says; run `make docs` and commit it")
else:
    PAGE.write_text(TEXT)
