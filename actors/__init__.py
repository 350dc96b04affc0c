"""Where things run: Ray actors and streams around `syn4seg`, and nothing of the method.

A cluster that a command starts has a private folder as its directory, so that no file beside a run is imported there; its
processes go to the directory of the command, in which relative paths are meant, as soon as they import this package.
"""

import os

WORKING_FOLDER = "SYN4SEG_WORKING_FOLDER"
"""Environment variable that holds the directory of the command which started the cluster."""

if os.environ.get(WORKING_FOLDER) and os.path.isdir(os.environ[WORKING_FOLDER]):
    os.chdir(os.environ[WORKING_FOLDER])
