"""Errors that a person can mend. Every other exception is a fault of this program, see `syn4seg.cli.main`."""

from __future__ import annotations


class UserError(Exception):
    """Something that the person at the terminal can mend: one message with key, value, expected and remedy; exit code 2."""


class StoreError(UserError):
    """A file system or object store that cannot be written or read: no fault of any row, so the stream stops."""


class DamagedError(UserError):
    """A file of a run that is damaged, missing or not of this program: it costs what it holds and nothing else."""
