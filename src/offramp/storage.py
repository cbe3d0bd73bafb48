"""Files that are whole or not there: atomic writes, tensors as safetensors.

torch is imported where tensors are: small files are read without it. Nothing read here runs code. What a run's
config.json names is another matter: see `offramp.trust`.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import safetensors

from offramp.errors import OfframpError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

_HELD = ".held.part"  # how the names of folders end whose content is not whole yet
_MAX_DEPTH = 50  # of JSON values
_ENTRY = "offramp"  # the one entry of a file's own metadata: JSON with our metadata and the hash


@dataclass(frozen=True)
class _Packed:
    """What a file of tensors says of itself."""

    metadata: dict[str, str] = field(default_factory=dict)
    sha256: str | None = None


class DamagedFileError(OfframpError):
    """A file that is not what was written."""


def kept_on_this_machine(kind: str) -> Path:
    """The folder of what takes long to make and is the same for every run here; `XDG_CACHE_HOME` moves it."""
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(named or Path.home() / ".cache") / "offramp" / kind
    except RuntimeError as error:  # as of some users of containers
        raise UsageError(
            "This user has no home folder to keep files in. Set XDG_CACHE_HOME to a folder that can be written to."
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, sync, rename, sync the folder: after a crash the old or the new content is there, whole."""
    with _replacing(path) as temporary:
        temporary.write_bytes(content)


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is done for it. Folders that lack are made."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file.")
    above = next(place for place in path.absolute().parents if os.path.lexists(place))
    if not above.is_dir() or not os.access(above, os.W_OK):
        reason = "not writable" if above.is_dir() else "no folder"
        raise OfframpError(f"{path} cannot be written: {above} is {reason}. Name another file.")


def write_files(files: Mapping[Path, bytes]) -> tuple[Path, ...]:
    """Write each of them atomically; gives their paths."""
    for path, content in files.items():
        write_atomically(path, content)
    return tuple(files)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file to write to; it takes the place of `path` when the block ends well, else it goes.

    Where `path` is a link, what it leads to is replaced. A device such as /dev/null is written to, and stays. What is
    there keeps its permissions; a new file has the usual ones, which the umask leaves.
    """
    try:
        mode = path.stat().st_mode if path.exists() else stat.S_IFREG
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISCHR(mode)):
            raise OfframpError(f"{path} cannot be written: it is no regular file.")
        target = Path(os.path.realpath(path))
        if not stat.S_ISCHR(mode):
            target.parent.mkdir(parents=True, exist_ok=True)
        with held_folder(Path(tempfile.gettempdir()) if stat.S_ISCHR(mode) else target.parent, target.name) as folder:
            temporary = folder / "new"
            temporary.touch()
            permissions = stat.S_IMODE((path if path.is_file() else temporary).stat().st_mode)
            yield temporary
            if stat.S_ISCHR(mode):
                path.write_bytes(temporary.read_bytes())
                return
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, permissions)
            os.replace(temporary, target)
            sync_folder(target.parent)
    except OSError as error:
        raise OfframpError(f"{path} cannot be written: {error.strerror or error}.") from error


@contextmanager
def held_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder in `parent` in which to make what will be `name` there. It goes when the block ends.

    That of a killed process goes when `name` is made again: the system has released its lock. A process that still
    runs keeps its own, in a container too. Where there are no locks, nothing is removed.
    """
    _remove_left(parent, name)
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=f".{name}.", suffix=_HELD))
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            break
        os.close(lock)  # before it had the lock, another process took the folder for one that was left
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_left(parent: Path, name: str) -> None:
    for entry in os.scandir(parent):
        if not (entry.name.startswith(f".{name}.") and entry.name.endswith(_HELD)):
            continue
        with contextlib.suppress(OSError):  # it is held, or gone
            lock = os.open(entry.path, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path)
            finally:
                os.close(lock)


def sync_folder(folder: Path) -> None:
    """Make a rename or an unlink in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically, with a hash of its content; equal input gives equal bytes."""
    from safetensors.torch import save_file  # brings torch

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    kept = dict(metadata or {})
    # One entry: the format does not fix the order of several, and files of equal runs must be equal.
    packed = {_ENTRY: json.dumps({"metadata": kept, "sha256": _content_hash(plain, kept)}, sort_keys=True)}
    with _replacing(path) as temporary:
        try:  # straight to the file: as bytes it would be in memory two more times, gigabytes for ImageNet's logits
            save_file(plain, temporary, packed)
        except safetensors.SafetensorError as error:  # how it says that the disk is full
            number = re.search(r"\(os error (\d+)\)", str(error))
            reason = str(error) if number is None else os.strerror(int(number[1]))
            raise OSError(0 if number is None else int(number[1]), reason) from error


def parse_json(text: str | bytes) -> Any:
    """The JSON value in a text in UTF-8: no key twice, and not nested so deeply that code which walks through it fails.

    Else a ValueError, in words that end without a full stop.
    """
    too_deep = ValueError(f"it is nested more than {_MAX_DEPTH} times")
    try:
        value = json.loads(text if isinstance(text, str) else text.decode(), object_pairs_hook=_distinct)
    except RecursionError as error:
        raise too_deep from error
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            item
            for outer in level
            if isinstance(outer, (dict, list))
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    raise too_deep


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {next(key for key in keys if keys.count(key) > 1)!r:.40} twice")
    return value


def load_tensors(path: Path, *, foreign: bool = False) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Tensors (on CPU) and metadata of a safetensors file. A missing or damaged one is a clear error.

    Only of `foreign` files, which other programs wrote, no hash is demanded.
    """
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            packed = parse_json((file.metadata() or {}).get(_ENTRY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise DamagedFileError(f"{path} is damaged or no safetensors file: {error}.") from error
    try:
        header = msgspec.convert(packed, _Packed)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise DamagedFileError(f"{path} is damaged: its metadata are not what offramp writes.") from error
    if not (foreign and header.sha256 is None) and header.sha256 != _content_hash(tensors, header.metadata):
        raise DamagedFileError(f"{path} is damaged: its content does not have the hash it was written with.")
    return tensors, dict(header.metadata)


def load_pickled(path: Path, hint: str = "") -> Any:
    """What `torch.save` has written, tensors and plain values; nothing in the file is run. A `hint` ends the error."""
    import torch

    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle or archive can raise anything
        # Not torch's own words: they advise to load it all the same.
        raise OfframpError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds more than tensors and plain values, which "
            f"is never loaded ({type(error).__name__}).{hint and ' '}{hint}"
        ) from error


def _content_hash(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> str:
    content = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        content.update(tensor_hash(tensors[name], name).encode())
    return content.hexdigest()


def tensor_hash(tensor: "Tensor", name: str = "") -> str:
    """SHA-256 of a name, type, shape and the values, 64 hexadecimal digits."""
    import torch

    content = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def weights_hash(tensors: "Mapping[str, Tensor]") -> str:
    """SHA-256 over names, types, shapes and values: the same for a `state_dict` and for the weights file made of it."""
    hashes = (tensor_hash(tensor, name) for name, tensor in sorted(tensors.items()))
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
