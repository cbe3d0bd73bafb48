"""C++ kernels, compiled once on a machine and kept.

A kept library belongs to this source, this torch and this processor: under another name for every other, it can be
neither stale nor made for another machine that shares the folder. It appears whole or not at all.
"""

import hashlib
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch.utils import cpp_extension

from offramp.errors import UsageError
from offramp.storage import kept_on_this_machine
from offramp.terminal import say

# Sums keep their order: no -ffast-math. OpenMP is what torch's own threads are.
FLAGS = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-std=c++20", "-shared", "-fPIC"]


def compiled(source: Path) -> Path:
    """The library made from a C++ file, from the folder of those made before if it is there.

    Raises:
        UsageError: There is no C++ compiler, it cannot compile this, or there is nowhere to keep what it makes.
    """
    library = kept_on_this_machine("kernels") / f"{source.stem}-{_fingerprint(source)}.so"
    if library.is_file():
        return library
    compiler = shlex.split(_compiler())
    if shutil.which(compiler[0]) is None:
        raise UsageError(f"Kernels need a C++ compiler, and there is no {compiler[0]} here; install g++, or set CXX.")
    say(f"Compiling {source.name} (once on this machine, about ten seconds)")
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / "made.so"
            _compile(compiler, source, made)
            made.replace(library)
    except OSError as error:
        raise UsageError(
            f"Kernels cannot be kept in {library.parent}: {error.strerror}; set XDG_CACHE_HOME."
        ) from error
    return library


def _compile(compiler: list[str], source: Path, made: Path) -> None:
    folders = [f"-isystem{folder}" for folder in cpp_extension.include_paths()]
    libraries = [f"-L{folder}" for folder in cpp_extension.library_paths()] + ["-lc10", "-ltorch_cpu", "-ltorch"]
    command = [*compiler, *FLAGS, *folders, str(source), "-o", str(made), *libraries]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-200:])
        raise UsageError(f"Kernels cannot be compiled by {compiler[0]}: {first}. Use another form of training.")


def _compiler() -> str:
    name: str = cpp_extension.get_cxx_compiler()  # type: ignore[no-untyped-call]
    return name


def _fingerprint(source: Path) -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    processor = next((line for line in lines if line.startswith("flags")), platform.processor())
    parts = [source.read_text(), torch.__version__, processor, _compiler(), *FLAGS]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
