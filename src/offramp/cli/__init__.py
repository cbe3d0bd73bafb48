"""The command `offramp`: one thin file a command. Nothing here imports torch; a command does when it runs."""

import contextlib
import errno
import functools
import inspect
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

import offramp
from offramp import trust
from offramp.cli.audit import audit
from offramp.cli.bench import bench
from offramp.cli.certify import certify
from offramp.cli.compare import compare
from offramp.cli.cost import cost
from offramp.cli.evaluate import evaluate
from offramp.cli.example import example
from offramp.cli.export import export
from offramp.cli.import_ import import_
from offramp.cli.layers import layers
from offramp.cli.policy import policy
from offramp.cli.predict import predict
from offramp.cli.reproduce import reproduce
from offramp.cli.train import train
from offramp.cli.verdict import verdict
from offramp.cli.xray import xray
from offramp.errors import OfframpError, SeveralErrors, UsageError
from offramp.terminal import OutputError, escaped_lines, say, standard_streams

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "compare": compare,
    "policy": policy,
    "certify": certify,
    "audit": audit,
    "bench": bench,
    "export": export,
    "verdict": verdict,
    "xray": xray,
    "cost": cost,
    "layers": layers,
    "import": import_,
    "reproduce": reproduce,
    "example": example,
}

OPENING = frozenset(COMMANDS) - {"audit", "example", "layers"}
"""Commands that may open a run's folder and build what it names: they take `--allow-code`."""
_AllowCode = tyro.conf.UseAppendAction[
    Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="PACKAGE",
            help="Let runs that were not made here name code of this package, which is run then.",
        ),
    ]
]

_NAMES = ("EACCES", "EDQUOT", "EIO", "ELOOP", "EMFILE", "ENAMETOOLONG", "ENFILE", "ENOSPC", "EPERM", "EROFS", "ESTALE")
REFUSALS = {getattr(errno, name) for name in _NAMES if hasattr(errno, name)}
"""What the system refuses, through no fault of the code: one line. Its other errors keep their traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Status: 0 done, 1 failed, 2 wrong use, 130 or 143 stopped by a signal, 141 nobody reads on."""
    with standard_streams():
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
                stream.reconfigure(errors="replace")  # names of files need not be UTF-8
        return _status(sys.argv[1:] if arguments is None else list(arguments))


def _status(arguments: Sequence[str]) -> int:
    """Run a command, and say in a line what went wrong."""
    try:
        _run(arguments)
    except UsageError as error:
        say(f"offramp: {error}")
        return 2
    except OutputError as error:
        if error.reader_gone:  # `offramp cost ... | head`: the reader has what it wanted
            return 141
        say(f"offramp: {error}")
        return 1
    except SeveralErrors as error:
        for number, line in enumerate(error.lines):  # each by itself: a name may hold the end of a line
            say(f"  {line}" if number else f"offramp: {line}")
        return 1
    except OfframpError as error:
        say(f"offramp: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno not in REFUSALS or error.filename is None:
            raise
        say(f"offramp: {os.fsdecode(error.filename)}: {error.strerror}.")
        return 1
    except RuntimeError as error:
        if str(error) != "Could not determine home directory.":  # pathlib's
            raise
        say("offramp: A path begins with ~ and a name, and nobody of that name has a home here.")
        return 2
    return 0


def _run(arguments: Sequence[str]) -> None:
    try:
        if list(arguments) == ["--version"]:
            print(f"offramp {offramp.__version__}")
        else:
            _parse(arguments)()
    except SystemExit:  # after --help, too
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def _parse(arguments: Sequence[str]) -> Callable[[], None]:
    """The command with its arguments, not yet run. What a configuration refuses is raised as it was, not in a box."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command: Callable[[], None] = tyro.extras.subcommand_cli_from_dict(
                {name: _later(function, opens=name in OPENING) for name, function in COMMANDS.items()},
                prog="offramp",
                description="Early-exiting image classifiers: train, evaluate, compare.",
                args=arguments,
            )
            return command
    except SystemExit as stop:
        cause: BaseException | None = stop
        while cause is not None and not isinstance(cause, UsageError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        print(escaped_lines(said.getvalue()), end="", file=sys.stderr)
        raise


def _later(function: Callable[..., None], *, opens: bool) -> Callable[..., Callable[[], None]]:
    """The command: called, it gives what runs it. Where it `opens` runs, it has the option `--allow-code`."""

    @functools.wraps(function)
    def bind(*args: Any, allow_code: tuple[str, ...] = (), **kwargs: Any) -> Callable[[], None]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            with trust.allowing(allow_code):
                function(*args, **kwargs)

        return functools.partial(run, *args, **kwargs)

    if opens:
        signature = inspect.signature(function)
        allow_code = inspect.Parameter("allow_code", inspect.Parameter.KEYWORD_ONLY, default=(), annotation=_AllowCode)
        bind.__signature__ = signature.replace(parameters=[*signature.parameters.values(), allow_code])  # type: ignore[attr-defined]
        bind.__annotations__ = {**function.__annotations__, "allow_code": _AllowCode}
        del bind.__wrapped__  # tyro would look at it instead
    return bind
