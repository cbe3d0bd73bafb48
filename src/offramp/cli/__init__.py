"""The command `offramp`, made from the options of commands. Nothing here imports torch; a command does when it runs."""

import contextlib
import errno
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence

import tyro

import offramp
from offramp import registry, trust
from offramp.checks import did_you_mean
from offramp.cli.config_file import ConfigFile
from offramp.commands.before_torch import before_torch
from offramp.commands.options import OpensRuns, Options
from offramp.errors import OfframpError, SeveralErrors, UsageError
from offramp.terminal import OutputError, escaped_lines, quiet, say_error, standard_streams

COMMANDS: Mapping[str, type[Options]] = registry.load(registry.COMMANDS)

_NAMES = ("EACCES", "EDQUOT", "EIO", "ELOOP", "EMFILE", "ENAMETOOLONG", "ENFILE", "ENOSPC", "EPERM", "EROFS", "ESTALE")
REFUSALS = {getattr(errno, name) for name in _NAMES if hasattr(errno, name)}
"""What the system refuses, through no fault of the code: one line. Its other errors keep their traceback."""


GENERAL = """\
Every command takes these as well, wherever they stand:
  --config FILE   Options out of a YAML or JSON file, or for train out of a
                  run's config.json. Those on the command line override them.
  -v, --verbose   Show messages of libraries, and where an error came from.
  -q, --quiet     Show results and errors only.
  -h, --help      Show the options of a command.
  -V, --version   Show the version.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Status: 0 done, 1 failed, 2 wrong use, 130 or 143 stopped by a signal, 141 no reader left."""
    with standard_streams():
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
                stream.reconfigure(errors="replace")  # names of files need not be UTF-8
        return _status(sys.argv[1:] if arguments is None else list(arguments))


def _status(arguments: Sequence[str]) -> int:
    """Run a command, and say in a line what went wrong."""
    try:
        _run(arguments)
    except (UsageError, OfframpError) as error:
        if isinstance(error, OutputError) and error.reader_gone:  # `offramp cost ... | head`: it has what it wanted
            return 141
        lines = error.lines if isinstance(error, SeveralErrors) else (str(error),)
        for number, line in enumerate(lines):  # each by itself: a name may hold the end of a line
            say_error(f"  {line}" if number else f"offramp: {line}")
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno not in REFUSALS or error.filename is None:
            raise
        say_error(f"offramp: {os.fsdecode(error.filename)}: {error.strerror}.")
        return 1
    except RuntimeError as error:
        if str(error) != "Could not determine home directory.":  # pathlib's
            raise
        say_error("offramp: A path begins with ~ and a name, and no user of that name has a home folder here.")
        return 2
    return 0


def _run(arguments: Sequence[str]) -> None:
    try:
        if arguments and arguments[0] in ("-V", "--version"):
            print(f"offramp {offramp.__version__}")
        elif arguments and arguments[0] in ("-h", "--help"):
            print(overview(), end="")
        else:
            with _opened(arguments) as options:
                before_torch()
                options.main()
    except SystemExit:  # after --help, too
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def overview() -> str:
    """The help of all: a line for each command."""
    lines = ["usage: offramp COMMAND ...", "", "Early-exiting image classifiers: train, evaluate, compare."]
    for title, group in registry.COMMAND_GROUPS.items():
        lines += ["", f"{title}:"]
        for name in group:
            first, _, _ = str(COMMANDS[name].__doc__).partition("\n")
            lines.append(f"  {name:<10} {first}")
    return "\n".join([*lines, "", GENERAL])


@contextlib.contextmanager
def _opened(arguments: Sequence[str]) -> Iterator[Options]:
    """What is asked, with what holds while it is done: how much is said, what may be run."""
    words, file = _without_config(arguments)
    verbose, silent = (any(word in words for word in names) for names in (("-v", "--verbose"), ("-q", "--quiet")))
    words = [word for word in words if word not in ("-v", "--verbose", "-q", "--quiet")]
    with contextlib.ExitStack() as held:
        if silent:
            held.enter_context(quiet())
        if verbose:
            logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
        config_file = None
        if file is not None and words and words[0] in COMMANDS:
            config_file = ConfigFile.read(file)
            words = [words[0], *config_file.words(COMMANDS[words[0]]), *words[1:]]
        options = parse(words)
        allowed = options.allow_code if isinstance(options, OpensRuns) else ()
        held.enter_context(trust.allowing(allowed))
        if config_file is not None:  # it may be a stranger's, and name code
            held.enter_context(trust.opened(config_file.path.parent, config_file.written, allowed))
        try:
            yield options
        except (OfframpError, UsageError):
            if verbose:
                traceback.print_exc()
            raise


def _without_config(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments without `--config FILE`, and the file."""
    words, file = [], None
    rest = iter(arguments)
    for word in rest:
        if word == "--config" or word.startswith("--config="):
            file = word.partition("=")[2] or next(rest, None)
            if not file:
                raise UsageError("--config takes a FILE: a run's config.json, or YAML.")
        else:
            words.append(word)
    return words, file


def parse(arguments: Sequence[str]) -> Options:
    """What is asked of which command. What its options refuse is raised as it was, not in a box."""
    if not arguments:
        print(overview(), end="", file=sys.stderr)
        raise SystemExit(2)
    name, *words = arguments
    if name.startswith("--tyro-"):  # completion of a shell
        return _parsed(lambda: tyro.extras.subcommand_cli_from_dict(dict(COMMANDS), prog="offramp", args=arguments))
    if name not in COMMANDS:
        raise UsageError(f"There is no command {name!r}.{did_you_mean(name, list(COMMANDS))}")
    try:
        return _parsed(lambda: tyro.cli(COMMANDS[name], prog=f"offramp {name}", args=words))
    except SystemExit:
        if {"-h", "--help"} & set(words):
            print("Also: --config FILE, -v, -q. `offramp --help` explains them.")
        raise


def _parsed(parser: Callable[[], Options]) -> Options:
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return parser()
    except SystemExit as stop:
        cause: BaseException | None = stop
        while cause is not None and not isinstance(cause, UsageError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        print(escaped_lines(captured.getvalue()), end="", file=sys.stderr)
        raise
