"""The one command `syn4seg VERB`. The verbs are the functions of the rooms' command.py; heavy imports wait inside them.

Exit codes: 0 done, 1 a check failed (`verify`, `doctor`), 2 an error that a person can mend, 3 a fault of this program (the
traceback is kept in a file; SYN4SEG_DEBUG=1 shows it), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import signal
import sys

import typer

from actors.command import evaluate, extend, predict, prompts, refine, run, serve, synthesize, train
from syn4seg.doctor import doctor
from syn4seg.errors import Interrupted, catch_signals, describe_error, interruption
from syn4seg.exports.command import export
from syn4seg.options import Settings, read_config
from syn4seg.planning.command import plan
from syn4seg.report.command import compare, report
from syn4seg.stages.command import audit, prepare, verify
from syn4seg.trained.command import model
from syn4seg.trials.command import cache
from syn4seg.watch.command import watch
from tune.command import sweep

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Syn4Seg on Ray: generalized few-shot segmentation that makes up its missing data.",
)


def config(settings: Settings = None) -> None:
    """Print the whole configuration, annotated, as YAML."""
    from syn4seg.config.tree import annotated

    print(annotated(read_config(settings)), end="")


for verb in (
    *(run, prompts, synthesize, refine, train, evaluate, sweep, predict, serve, model, extend),
    *(verify, watch, report, compare, export, prepare, plan, audit, config, doctor),
):
    app.command()(verb)
app.add_typer(cache, name="cache")


def main() -> None:
    """Run a verb: a mistake that a person can mend is one message and exit code 2, a fault of ours 3, Ctrl-C 130."""
    catch_signals()
    try:
        app()
    except Interrupted as stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if message := str(stop):
            print(message, file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - every exception ends as one line
        if stop := interruption(error):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            print(stop, file=sys.stderr)
            sys.exit(130)
        code, line = describe_error(error)
        print(f"error: {line}", file=sys.stderr)
        sys.exit(code)


if __name__ == "__main__":
    main()
