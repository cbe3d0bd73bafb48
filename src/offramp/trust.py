"""Which code a run's folder may name: what is registered here; anything else needs the user's word on this machine.

A run's `config.json` names data, network, objective and rule, and a command on the run calls them with the arguments
that stand there. The folder may be a stranger's. So while names of a run are built (`opened`), `check` stands before
every import: a name has to be in `REGISTERED` or in a room's registry, or in a package that the user allowed
(`--allow-code`, `allow_code=`, `OFFRAMP_ALLOW_CODE`), or the run was made here by the user's own command (`remember`).
A name that the user types or hands over needs none of this.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from offramp import registry
from offramp.errors import UsageError

VARIABLE = "OFFRAMP_ALLOW_CODE"  # packages with commas between them
_RECORDED = {  # builders that leave another recipe than their own name
    "collaborating": "backbones.collaboration:collaboration",
    "dynamic": "objectives.power_sqrt:PowerSqrt",
    "prefix": "backbones.prefix:shorter",
}


def _recorded(names: Mapping[str, str], *more: str) -> frozenset[str]:
    return frozenset(f"offramp.{path}" for path in ({**names, **_RECORDED}[name] for name in names)) | {*more}


REGISTERED: Mapping[str, frozenset[str]] = {
    "data set": frozenset({"offramp.paper.watching:on_test"}),
    "network": _recorded(registry.BACKBONES, "offramp.backbones.attached.zoo:named"),
    "objective": _recorded(registry.OBJECTIVES),
    "rule": _recorded(registry.RULES),
}
"""Import paths that runs have in their `config.json`, by kind. Names without a colon stand in the registry."""
_NEVER = sys.stdlib_module_names | {"offramp"}  # packages of which a run's folder may name nothing else
_CODE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True)
class _Opened:
    """The run whose names are being built."""

    path: str
    packages: tuple[str, ...]
    is_own: bool


_opened: ContextVar[_Opened | None] = ContextVar("opened", default=None)
_allowed: ContextVar[tuple[str, ...]] = ContextVar("allowed", default=())


def packages(names: Sequence[str], said_by: str) -> tuple[str, ...]:
    """The names of packages that the user allows, checked; `said_by` is where they stand."""
    if isinstance(names, str):
        raise UsageError(f"{said_by} takes a tuple of names, such as ({names!r},), not {names!r}.")
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UsageError(f"{said_by} {name!r}: name a package or module, such as mine or mine.networks.")
        if name.partition(".")[0] in _NEVER:
            raise UsageError(
                f"{said_by} {name!r}: of Python's own library and of offramp a run's folder may name only what is "
                "registered, and nothing more can be allowed."
            )
    return tuple(names)


T = TypeVar("T")


@contextmanager
def _set(variable: ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def allowing(names: Sequence[str]) -> AbstractContextManager[None]:
    """Runs that are opened meanwhile may name code of these packages: `--allow-code`."""
    return _set(_allowed, (*_allowed.get(), *packages(names, "--allow-code")))


def environment() -> dict[str, str]:
    """Variables for child processes, so that they allow what is allowed here."""
    allowed = (*_allowed.get(), *_of_environment())
    return {VARIABLE: ",".join(allowed)} if allowed else {}


def opened(path: Path, config: Mapping[str, Any], allowed: Sequence[str] = ()) -> AbstractContextManager[None]:
    """While the names in a run's configuration are built; it may name code of the `allowed` packages."""
    return _set(_opened, _Opened(str(path), packages(allowed, "allow_code"), _is_remembered(path, config)))


def at_least_guarded() -> AbstractContextManager[None]:
    """As `opened` of a run that nothing is known of, unless one is open: for recipes wherever they come from."""
    return _set(_opened, _opened.get() or _Opened("a recipe", (), is_own=False))


def calling(name: str, kind: str) -> AbstractContextManager[None]:
    """While the thing of this name is called: code of one's own, once it is trusted, may build what it likes."""
    is_ours = ":" not in name or name.startswith("folder:") or name in REGISTERED.get(kind, ())
    return _set(_opened, _opened.get() if is_ours else None)


def is_opened() -> bool:
    """Whether what is being built stands in a run's folder."""
    return _opened.get() is not None


def check(name: str, kind: str) -> None:
    """Refuse a name `package.module:Name` of a run's folder that may not be imported, before anything is imported.

    `kind` is the word used in errors: `network`, `objective`, `rule`, `data set`.
    """
    run = _opened.get()
    if run is None or name in REGISTERED.get(kind, ()):
        return
    module, _, attribute = name.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise UsageError(f"{kind} {name!r} of {run.path} is refused: it is no name of code, package.module:Name.")
    package = module.partition(".")[0]
    if package in _NEVER:
        raise UsageError(
            f"{kind} {name!r} of {run.path} is refused: of Python's own library and of offramp a run's folder may name "
            "only what is registered."
        )
    allowed = (*run.packages, *_allowed.get(), *_of_environment())
    if run.is_own or any(module == code or module.startswith(f"{code}.") for code in allowed):
        return
    raise UsageError(
        f"{kind} {name!r} of {run.path} is code that is not offramp's, and to open the run is to run it. Only if you "
        f"trust package {package} and this run: --allow-code {package} (in Python allow_code=({package!r},), or "
        f"{VARIABLE}={package})."
    )


def _of_environment() -> tuple[str, ...]:
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",")]
    return packages([name for name in names if name], VARIABLE)


def remember(path: Path, config: Mapping[str, Any]) -> None:
    """Keep on this machine that a run with code of one's own was made here, in this folder, by the user's own command.

    Nothing is kept of a run that names none, nor where there is no place to keep it.
    """
    record = _record(path, config)
    if record is None or not any(_own_names(_naming(config))):
        return
    with contextlib.suppress(OSError):
        record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(record, os.O_WRONLY | os.O_CREAT, 0o600)
        with open(descriptor, "w", errors="surrogateescape") as file:
            file.write(f"{os.path.realpath(path)}\n")  # for people; that the file is there says it


def _is_remembered(path: Path, config: Mapping[str, Any]) -> bool:
    record = _record(path, config)
    try:
        return record is not None and record.is_file()
    except OSError:
        return False


def _record(path: Path, config: Mapping[str, Any]) -> Path | None:
    """The file that says that a run was made here: its name is a hash of the folder and of all that names code.

    It lies with the user, not in the run's folder, which is copied and unpacked; so a copied or moved run, and one in
    which a name or an argument was changed, has none. None where there is no home folder.
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        # A relative one would lie in the folder one works in; its standard says to ignore it.
        folder = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    except RuntimeError:
        return None
    content = json.dumps([os.path.realpath(path), _naming(config)], sort_keys=True)
    return folder / "offramp" / "own-runs" / hashlib.sha256(content.encode()).hexdigest()


def _naming(config: Mapping[str, Any]) -> list[Any]:
    """The parts of a configuration that name code, with its arguments."""
    data = config.get("data")
    source = data.get("source") if isinstance(data, Mapping) else None
    return [source, *(config.get(name) for name in ("network", "objective", "rule"))]


def packages_in(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The packages of one's own that a configuration names code of."""
    names = {name.partition(":")[0].partition(".")[0] for name in _own_names(_naming(config))}
    return tuple(sorted(names - _NEVER))


def _own_names(value: Any) -> Iterator[str]:
    """Texts in a configuration, wherever they stand, that read as names of code and are not registered."""
    if isinstance(value, str) and _CODE.fullmatch(value) and not any(value in names for names in REGISTERED.values()):
        yield value
    elif isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _own_names(item)
