"""The one command `syn4seg VERB`. The verbs are the functions of the rooms' command.py; heavy imports wait inside them.

Exit codes: 0 done, 1 a check failed (`verify`, `doctor`), 2 an error that a person can mend, 3 a fault of this program (the
traceback is kept in a file; SYN4SEG_DEBUG=1 shows it), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from actors.command import evaluate, extend, predict, prompts, refine, run, serve, synthesize, train
from syn4seg.doctor import doctor
from syn4seg.errors import Interrupted, catch_signals, describe_error, interruption
from syn4seg.exports.command import export
from syn4seg.intake.command import init
from syn4seg.options import Settings, read_config, say_first, set_loudness
from syn4seg.planning.command import plan
from syn4seg.report.command import compare, report
from syn4seg.stages.command import audit, prepare, verify
from syn4seg.trained.command import model
from syn4seg.trials.command import cache
from syn4seg.watch.command import ls, watch
from tune.command import sweep

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Syn4Seg on Ray: generalized few-shot segmentation that makes up its missing data.",
)


def config(settings: Settings = None) -> None:
    """Print the whole configuration, annotated, as YAML."""
    from syn4seg.config.tree import annotated

    print(annotated(read_config(settings)), end="")


def print_version(wanted: bool) -> None:
    """Print the version of this package and end, where `--version` is given."""
    if wanted:
        from syn4seg.doctor import own_version

        print(f"syn4seg {own_version()}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=print_version, help="Print the version.")] = False,
) -> None:
    """Keep the options that stand before every verb; the help of the program is that of `app`."""


Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say only what was asked for, warnings and errors.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say when, what libraries warn of, and tracebacks.")]


def with_loudness(verb: Callable[..., None]) -> Callable[..., None]:
    """Return a verb that takes `-q` and `-v` too."""
    signature = inspect.signature(verb, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in (("quiet", Quiet), ("verbose", Verbose))
    ]
    parameters = [*signature.parameters.values(), *added]

    @functools.wraps(verb)
    def loud(*args: Any, quiet: bool, verbose: bool, **kwargs: Any) -> None:
        set_loudness(verbose - quiet)
        if verbose:
            os.environ.setdefault("SYN4SEG_DEBUG", "1")
        else:
            warnings.showwarning = _drop_warning  # libraries' remarks to programmers; some set filters of their own
        if verb not in (config, doctor, init, ls, watch):
            say_first("loading libraries")
        verb(*args, **kwargs)

    loud.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    loud.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return loud


def _drop_warning(*_: Any, **__: Any) -> None:
    """Show no warning: it would tear a progress bar, and says nothing to the person at the terminal."""


for verb in (
    *(run, prompts, synthesize, refine, train, evaluate, sweep, predict, serve, model, extend),
    *(init, ls, verify, watch, report, compare, export, prepare, plan, audit, config, doctor),
):
    app.command()(with_loudness(verb))
app.add_typer(cache, name="cache")


def main() -> None:
    """Run a verb: a mistake that a person can mend is one message and exit code 2, a fault of ours 3, Ctrl-C 130."""
    catch_signals()
    set_loudness(0)
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
