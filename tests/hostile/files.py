"""Damaged files of a run's folder, and the commands that read them: each has to end well, or in one line.

`prepare(folder)` makes a run that has every file. `damages(file, content, count, seed)` gives damaged versions of a
file, with what was done to each. `failure(...)` says what went wrong when a command met one, or nothing.
"""

import contextlib
import copy
import io
import json
import random
import shutil
import struct
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from tests.results import made_up

from offramp.cli import main
from offramp.commands.bench.exit_times import exit_times
from offramp.data import Inputs
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import Certificate, Ladder, Record
from offramp.export.stage_files import ExitFile, StageFile, Stages
from offramp.files import RunFolder
from offramp.files.evaluation import current
from offramp.files.xray import Xray
from offramp.json_files import read, write
from offramp.paper.manifest import find
from offramp.policy import Policy
from offramp.results.bench import Bench, read_bench
from offramp.results.verdict.values import Verdict
from offramp.runtime import Tuning
from offramp.show import figures
from offramp.show.bench.plots import times
from offramp.show.bench.table import bench_table
from offramp.show.terminal import console
from offramp.show.verdict.page import verdict_page
from offramp.show.verdict.table import verdict_table
from offramp.storage import load_tensors, weights_hash
from offramp.training.provenance import ancestor, ancestors

NETWORK = "exits=2 channels=4 growth=2 growth_factors=(1,2) bottleneck_factors=(1,2) head_channels=8"
TRAIN = f"train --data digits --network msdnet {NETWORK} --epochs 2 --threads 1 --xray 20 --out RUN".split()
BENCH = "--rounds 5 --limit 8 --batches 1 --backend torch".split()
VERDICT = "--no-train --rounds 5 --seconds 1 --images 8 --backend torch".split()
COMMANDS: dict[str, list[str]] = {
    "cost": ["cost", "RUN"],
    "predict": ["predict", "RUN", "RUN/image.png", "--format", "jsonl"],
    "evaluate": ["evaluate", "RUN", "--train-limit", "20"],
    "compare": ["compare", "RUN"],
    "policy": ["policy", "RUN", "--max-drop", "20"],
    "policy, milliseconds": ["policy", "RUN", "--latency", "1000"],
    "certify": ["certify", "RUN", "--risk", "0.5"],
    "certify a ladder": ["certify", "RUN", "--ladder", "40,60"],
    "xray": ["xray", "RUN"],
    "train": TRAIN,
    "train from it": [*TRAIN[:-1], "NEW", "--init", "RUN"],
    "train a part of it": "train --data digits --network prefix run=RUN exits=1 --epochs 1 --out NEW".split(),
    "bench": ["bench", "RUN", *BENCH],
    "verdict": ["verdict", "RUN", *VERDICT],
    "export": ["export", "RUN", "--to", "onnx"],
    "reproduce": "reproduce table1 --scale pocket --dry-run --rate 1e9 --known RUN".split(),
}
READ_BY: dict[str, list[str]] = {
    "config.json": [
        *("cost", "predict", "evaluate", "compare", "policy", "certify", "xray", "train", "train from it"),
        *("train a part of it", "bench", "verdict", "export"),
    ],
    "environment.json": ["evaluate", "train", "verdict"],
    "input.json": ["predict", "export"],
    "origin.json": ["certify", "predict", "evaluate", "train from it", "verdict"],
    "split.json": ["policy", "certify", "train from it", "verdict"],
    "metrics.jsonl": ["evaluate", "verdict", "xray"],
    "policy.json": ["predict", "evaluate", "policy", "certify", "bench", "verdict", "export"],
    "ladder.json": ["certify", "certify a ladder"],
    "bench.json": ["predict", "policy, milliseconds"],
    "evaluation.json": ["compare"],
    "verdict.json": ["verdict"],
    "manifest.json": ["reproduce"],
    "weights.safetensors": ["predict", "evaluate", "train from it"],
    "xray.safetensors": ["xray"],
    "records/test.safetensors": ["evaluate"],
}


def _shown(bench: Bench) -> None:
    with figures.style():
        times(bench)
    console().print(bench_table(bench))


def _judged(verdict: Verdict) -> None:
    verdict_page(verdict, "run")
    console().print(verdict_table(verdict))


READERS: dict[str, Callable[[RunFolder], object]] = {
    "config.json": lambda run: (run.read_config(), run.identity()),
    "environment.json": lambda run: run.read_starts(),
    "input.json": lambda run: Inputs.load(run.input),
    "origin.json": lambda run: ancestors(run, run.read_config()),
    "split.json": lambda run: ancestor("init", run.path),
    "metrics.jsonl": lambda run: run.read_metrics(),
    "policy.json": lambda run: Certificate.of(Policy.load(run.policy)),
    "ladder.json": lambda run: Ladder.load(run.ladder),
    "bench.json": lambda run: (
        exit_times(run, weights_hash(load_tensors(run.weights)[0]), "1", 2),
        _shown(read_bench(run)),
        Tuning.from_json(read(run.bench, dict[str, Any])["tuning"]),
    ),
    "verdict.json": lambda run: _judged(read(run.verdict, Verdict)),
    "evaluation.json": current,
    "manifest.json": lambda run: [manifest.undisturbed for manifest in find([run.path]).values()],
    "export/stages.json": lambda run: Stages.load(run.export),
    "xray.safetensors": lambda run: Xray.load(run.xray),
    "records/test.safetensors": lambda run: Record.load(run.record("test")),
}
SLOW = ("bench", "verdict", "export")  # seconds each
VALUES = [
    *(None, True, -1, 0, 1.5, 10**30, float("nan"), float("inf"), "", "x", "\ud800\x1b[2J\n", "y" * 100_000),
    *([], [[]], {}, {"x": 1}, [None], ["x"], [1, 2, 3]),
]
TEXTS = {
    "empty": b"",
    "not UTF-8": b"\xff\xfe{}",
    "only open brackets": b"[" * 200_000,
    "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "nested 900 times": b"[" * 900 + b"]" * 900,
    "a key twice": b'{"format": 1, "format": 1}',
    "a number of 10,000 digits": b"1" * 10_000,
    "NaN": b"NaN",
    "a string": b'"x"',
    "a list": b"[]",
    "an object": b"{}",
    "null": b"null",
    "zeros": bytes(1000),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a JSON value has values, itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any, *, remove: bool = False) -> Any:
    if not path:
        return new
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if remove:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return value


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def every_damage(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Each kind of damage at each field of a JSON file: another type, NaN, a huge number, missing, one key more."""
    value = json.loads(content)
    yield from TEXTS.items()
    yield from (
        (f"cut after {length} bytes", content[:length]) for length in range(0, len(content), len(content) // 20 + 1)
    )
    for path in places(value):
        where = ".".join(map(str, path)) or "all"
        for new in [*VALUES, deep(70)]:
            yield f"{where} = {str(new)[:20]!r}", json.dumps(changed(value, path, new)).encode()
        if path:
            yield f"{where} removed", json.dumps(changed(value, path, None, remove=True)).encode()
        if is_object(value, path):
            yield f"{where}.more added", json.dumps(changed(value, (*path, "more"), 1)).encode()


def damages_of_json(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` random damages of a JSON file."""
    numbers, value = random.Random(seed), json.loads(content)
    everywhere = list(places(value))
    for _ in range(count):
        kind, path = numbers.choice(["value", "value", "value", "deep", "remove", "add", "text", "cut"]), ()
        if kind == "text":
            name, text = numbers.choice(list(TEXTS.items()))
            yield name, text
            continue
        if kind == "cut":
            length = numbers.randrange(len(content))
            yield f"cut after {length} bytes", content[:length]
            continue
        path = numbers.choice(everywhere)
        where = ".".join(map(str, path)) or "all"
        if kind == "remove" and path:
            yield f"{where} removed", json.dumps(changed(value, path, None, remove=True)).encode()
        elif kind == "deep":
            levels = numbers.choice([70, 300, 900])
            yield f"{where} nested {levels} times", json.dumps(changed(value, path, deep(levels))).encode()
        elif kind == "add":
            yield (
                f"{where}.more added",
                json.dumps(changed(value, (*path, "more"), 1) if is_object(value, path) else 1).encode(),
            )
        else:
            new = numbers.choice(VALUES)
            yield f"{where} = {str(new)[:20]!r}", json.dumps(changed(value, path, new)).encode()


def is_object(value: Any, path: tuple[Any, ...]) -> bool:
    for key in path:
        value = value[key]
    return isinstance(value, dict)


def damages_of_lines(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    lines = content.splitlines(keepends=True)
    for number, (name, line) in enumerate(damages_of_json(lines[-1], count, seed)):
        kept = lines[: number % len(lines)]
        yield f"after {len(kept)} lines: {name}", b"".join([*kept, line, b"\n"])


def damages_of_tensors(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Damages of a safetensors file's header and of the metadata in it."""
    numbers = random.Random(seed)
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    ours = header["__metadata__"]["offramp"].encode()

    def packed(text: bytes) -> bytes:
        return struct.pack("<Q", len(text)) + text + content[8 + size :]

    for name, damaged in damages_of_json(ours, count // 2, seed):
        text = damaged.decode(errors="replace")
        yield f"metadata: {name}", packed(json.dumps({**header, "__metadata__": {"offramp": text}}).encode())
    for name, damaged in damages_of_json(json.dumps(header).encode(), count - count // 2, seed + 1):
        yield f"header: {name}", packed(damaged)
    place = numbers.randrange(len(content))
    yield f"bit of byte {place}", content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def damages(file: str, content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Damaged versions of a file of a run, with what was done to each."""
    of_kind = {".json": damages_of_json, ".jsonl": damages_of_lines, ".safetensors": damages_of_tensors}
    yield from of_kind[Path(file).suffix](content, count, seed)


def prepare(folder: Path, *, quickly: bool = False) -> Path:
    """A run with every file that a run may have; `quickly`: without those of `bench` and `verdict`."""
    run = folder / "RUN"
    assert outcome(TRAIN, folder) == ""
    Image.new("L", (8, 8), 99).save(run / "image.png")
    for name in ("policy", "certify", "certify a ladder", "evaluate", *(() if quickly else ("bench", "verdict"))):
        assert outcome(COMMANDS[name], folder) == "", name
    if quickly:
        weights, policy = weights_hash(load_tensors(run / "weights.safetensors")[0]), Policy.load(run / "policy.json")
        write(run / "bench.json", made_up.bench(policy, weights).to_json())
        write(run / "verdict.json", made_up.verdict().to_json())
    stages = tuple(StageFile(f"stage-{k}.onnx", ("images",) if k == 1 else ("map",), ("map",)) for k in (1, 2))
    exits = tuple(ExitFile(f"exit-{k}.onnx", 0) for k in (1, 2))
    Stages(run / "export", 10, False, (1, 16, 16), "0" * 64, stages, exits).write([b"no ONNX"] * 4)
    told = {"init": {"file": "x/weights.safetensors", "sha256": "0" * 64}, "model": None}
    (run / "origin.json").write_text(
        json.dumps({**told, "ancestors": [one.to_json() for one in ancestor("init", run)]})
    )
    manifest = next(shipped_manifests())
    shutil.copy(manifest, run / "manifest.json")
    return run


def shipped_manifests() -> Iterator[Path]:
    yield from sorted(Path(__file__).parents[2].joinpath("docs", "results", "manifests").rglob("*.json"))


def outcome(command: list[str], folder: Path, *, may_fail: bool = False) -> str:
    """What went wrong with a command in a folder, in this process; empty where it ended well, or failed in one line."""
    out, err = io.StringIO(), io.StringIO()
    words = [word.replace("RUN", str(folder / "RUN")).replace("NEW", str(folder / "NEW")) for word in command]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            status = main(words)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return f"{type(error).__name__}: {str(error)[:100]} at {traceback.format_exc().splitlines()[-4].strip()}"
    lines = [line for line in err.getvalue().splitlines() if line.startswith("offramp: ")]
    if status == 0:
        return ""
    if status not in (1, 2) or not may_fail:
        return f"status {status}: {err.getvalue()[-300:]}"
    if len(lines) != 1 or err.getvalue().splitlines()[-1] != lines[0]:
        return f"status {status}, said: {err.getvalue()[-300:]}"
    return "" if len(lines[0]) < 2000 else f"a line of {len(lines[0])} characters"


def failure(run: Path, file: str, content: bytes, command: str, folder: Path) -> str:
    """What went wrong when a command met a damaged file in a copy of the run, made in `folder`."""
    for name in ("RUN", "NEW"):
        shutil.rmtree(folder / name, ignore_errors=True)
    shutil.copytree(run, folder / "RUN")
    (folder / "RUN" / file).write_bytes(content)
    failure = outcome(COMMANDS[command], folder, may_fail=True)
    return failure or "".join(f"left {path}" for path in folder.rglob("*.part"))


def misread(run: Path, file: str, content: bytes) -> str:
    """What went wrong when a damaged file in the run itself was read; empty where it was read, or refused in a line."""
    whole = (run / file).read_bytes()
    (run / file).write_bytes(content)
    try:
        READERS[file](RunFolder(run))
    except (OfframpError, UsageError) as error:
        return "" if "\n" not in str(error) and len(str(error)) < 2000 else f"{len(str(error))} characters, or lines"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:100]} at {traceback.format_exc().splitlines()[-4].strip()}"
    finally:
        (run / file).write_bytes(whole)
    return ""
