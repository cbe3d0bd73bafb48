"""The command `offramp`, made from the options of commands. Nothing here imports torch; a command does when it runs."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Mapping, Sequence

import tyro

import offramp
from offramp import trust
from offramp.commands.audit import AuditOptions
from offramp.commands.bench import BenchOptions
from offramp.commands.certify import CertifyOptions
from offramp.commands.compare import CompareOptions
from offramp.commands.cost import CostOptions
from offramp.commands.evaluate import EvaluateOptions
from offramp.commands.example import ExampleOptions
from offramp.commands.export import ExportOptions
from offramp.commands.import_ import ImportOptions
from offramp.commands.layers import LayersOptions
from offramp.commands.options import OpensRuns, Options
from offramp.commands.policy import PolicyOptions
from offramp.commands.predict import PredictOptions
from offramp.commands.reproduce import ReproduceOptions
from offramp.commands.train import TrainOptions
from offramp.commands.verdict import VerdictOptions
from offramp.commands.xray import XrayOptions
from offramp.errors import OfframpError, SeveralErrors, UsageError
from offramp.terminal import OutputError, escaped_lines, say, standard_streams

COMMANDS: Mapping[str, type[Options]] = {
    "train": TrainOptions,
    "evaluate": EvaluateOptions,
    "predict": PredictOptions,
    "compare": CompareOptions,
    "policy": PolicyOptions,
    "certify": CertifyOptions,
    "audit": AuditOptions,
    "bench": BenchOptions,
    "export": ExportOptions,
    "verdict": VerdictOptions,
    "xray": XrayOptions,
    "cost": CostOptions,
    "layers": LayersOptions,
    "import": ImportOptions,
    "reproduce": ReproduceOptions,
    "example": ExampleOptions,
}

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
            options = parse(arguments)
            with trust.allowing(options.allow_code if isinstance(options, OpensRuns) else ()):
                options.main()
    except SystemExit:  # after --help, too
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def parse(arguments: Sequence[str]) -> Options:
    """What is asked of which command. What its options refuse is raised as it was, not in a box."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options: Options = tyro.extras.subcommand_cli_from_dict(
                dict(COMMANDS),
                prog="offramp",
                description="Early-exiting image classifiers: train, evaluate, compare.",
                args=arguments,
            )
            return options
    except SystemExit as stop:
        cause: BaseException | None = stop
        while cause is not None and not isinstance(cause, UsageError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        print(escaped_lines(said.getvalue()), end="", file=sys.stderr)
        raise
