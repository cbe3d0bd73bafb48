"""Everything that is hostile to offramp, in one table: `make torture`, or `python tests/torture.py --share 0.1`.

Sections are made of tasks. Each task runs in a process of its own, two at a time, so that one which dies or hangs is a
failure like any other. Every section has negative controls: the same checks on an offramp without its guard, or on a
program that has none, which have to fail.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

TESTS = Path(__file__).resolve().parent
sys.path += [str(TESTS), str(TESTS / "training"), str(TESTS.parent)]
CONTROL = "control"  # the name of each section's task of controls
MINUTES = 40  # after which a task is taken for one that hangs
SHOWN = 10  # failures


class Plan(NamedTuple):
    """How much of a task is run, and where."""

    share: float
    seed: int
    folder: Path

    def some(self, items: Any) -> list[Any]:
        """That share of the items, at least one, in their order."""
        items = list(items)
        places = random.Random(self.seed).sample(range(len(items)), self.number(len(items)))
        return [items[place] for place in sorted(places)]

    def number(self, full: int) -> int:
        return max(1, math.ceil(self.share * full)) if full else 0


class Tried(NamedTuple):
    """What came of one case; of a control `failure` has to say something."""

    case: str
    failure: str
    times: int = 1
    note: str = ""


@dataclass
class Total:
    """What came of a section."""

    tried: int = 0
    failed: int = 0
    controls: list[bool] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)


# -- kills -------------------------------------------------------------------------------------------------------------

_SMALL = "--network msdnet exits=2 channels=4 growth=2 growth_factors=(1,2) bottleneck_factors=(1,2) head_channels=8"
_DIGITS = "train --data digits limit=400".split()
_KILLED = f"{_SMALL} --batch-size 50 --threads 1 --epochs 20 --save-every-steps 1".split()
KILLS: dict[str, list[str]] = {
    "standard": [*_DIGITS, *_KILLED],
    "dynamic, saved after every third step": [*_DIGITS, *_KILLED[:-1], "3", "--objective", "dynamic"],
    "another seed, the best kept": [*_DIGITS, *_KILLED, "--seed", "7", "--keep-best", "--objective", "power-sqrt"],
    "WPN": [*_DIGITS, *_KILLED, "--rule", "wpn"],
    "Meta-GF": [*_DIGITS, *_KILLED, "--rule", "meta-gf", "--epochs", "21"],
    "DFS": [*_DIGITS, *_KILLED, "--rule", "dfs"],
    "compiled, bf16": [*_DIGITS, *_KILLED, "--form", "compiled", "--precision", "bf16"],
    "plain, AdamW": [*_DIGITS, *_KILLED, "--form", "plain", "--optimizer", "adamw", "--lr", "0.001"],
    "frozen trunk, gradients watched": [*_DIGITS, *_KILLED, "--freeze-trunk", "--no-augment", "--xray", "20"],
    "folder of images, two workers": ["train", "--data", "folder:PHOTOS", "image_size=16", *_KILLED, "--workers", "2"],
}
_KILLS_EACH = 20


def kills(task: str, plan: Plan) -> Iterator[Tried]:
    """Real kills at random moments, until the run is finished: its files are those of a run never interrupted."""
    from kills import torture

    if task == CONTROL:
        for name, sabotage in (("the optimiser's state is not read", forget), ("no checkpoint is read", start_anew)):
            found = torture(plan.folder / name, 3, plan.seed, KILLS["standard"], sabotage)
            yield Tried(name, ", ".join(found["different"]) or ("" if found["continued"] else "never continued"))
        return
    if "compiled" in task and not (shutil.which("c++") or shutil.which("g++")):
        return
    photos(plan.folder / "photos")
    arguments = [word.replace("PHOTOS", str(plan.folder / "photos")) for word in KILLS[task]]
    wanted, done, seed = plan.number(_KILLS_EACH), 0, plan.seed
    while done < wanted:
        found = torture(plan.folder / str(seed), wanted - done, seed, arguments)
        wrong = f"other bytes in {', '.join(found['different'])}" if found["different"] else ""
        wrong = wrong or ("" if found["continued"] or found["kills"] < 3 else "no start continued from a checkpoint")
        yield Tried(f"{found['kills']} kills, seed {seed}", wrong, found["kills"])
        yield Tried("", "", found["in_writes"], "kills while a file was being written")
        done, seed = done + found["kills"], seed + 1


def forget() -> None:
    from offramp.training.loop import Loop

    Loop._load_optimizer_state = lambda self, tensors: None  # type: ignore[method-assign]


def start_anew() -> None:
    from offramp.training.checkpoints import CheckpointStore

    CheckpointStore.latest = lambda self, note, owns=None: None  # type: ignore[method-assign,assignment,misc]


def photos(folder: Path) -> None:
    import numpy
    from PIL import Image

    numbers = numpy.random.default_rng(0)
    for label, name in enumerate(("cats", "dogs")):
        (folder / name).mkdir(parents=True)
        for number in range(60):
            pixels = numbers.integers(0, 100, (16, 16, 3), dtype=numpy.uint8) + 120 * label
            Image.fromarray(pixels.astype(numpy.uint8)).save(folder / name / f"{number}.png")


# -- flipped bits ------------------------------------------------------------------------------------------------------


def bit_tasks() -> list[str]:
    from hostile import bits

    return list(bits.READERS)


def flipped_bits(task: str, plan: Plan) -> Iterator[Tried]:
    """Each is noticed, in a line, or changes nothing."""
    from hostile import bits

    run = bits.prepare(plan.folder)
    if task == CONTROL:
        for file in bits.READERS:
            good, content = bits.READERS[file](run), bits.path_of(run, file).read_bytes()
            with bits.without_hashes():
                found = [bits.failure(run, file, *place, good) for place in bits.flips(content, file, 30, plan.seed)]
            yield Tried(f"{file}, hashes not compared", next(filter(None, found), ""))
        return
    good, content = bits.READERS[task](run), bits.path_of(run, task).read_bytes()
    for byte, bit in bits.flips(content, task, plan.number(bits.SHARES[task]), plan.seed):
        yield Tried(f"bit {bit} of byte {byte}", bits.failure(run, task, byte, bit, good))


# -- hostile folders ---------------------------------------------------------------------------------------------------


def name_tasks() -> list[str]:
    from hostile import names

    return list(names.COMMANDS)


def hostile_folders(task: str, plan: Plan) -> Iterator[Tried]:
    """Names and recipes in a stranger's configuration: no code runs, and what is refused is refused in a line."""
    from hostile import names

    if task != CONTROL:
        commands = {task: names.COMMANDS[task]}
        for case, wrong in names.attempts(plan.folder, commands, plan.some):
            yield Tried(case, wrong or "")
        return
    canary, files = plan.folder / "canary", names.finished(plan.folder / "made")
    names.code_in(plan.folder / "work", canary, *names.SHADOWS)
    os.chdir(plan.folder / "work")
    for kind in names.KINDS:
        canary.unlink(missing_ok=True)
        sys.modules.pop(names.MODULE, None)
        run = names.stranger(plan.folder / kind, files, **{kind: {"name": f"{names.MODULE}:fire", "args": {}}})
        command = "verdict" if kind in ("objective", "rule") else "evaluate"
        names.answer([command, str(run), "--allow-code", names.MODULE])
        yield Tried(f"{kind}, code allowed", "the canary was written" if canary.exists() else "")
    import torch

    canary.unlink(missing_ok=True)
    torch.load(names.evil_pickle(plan.folder / "evil.pth", canary), weights_only=False)
    yield Tried("the pickle, loaded as pickles are", "the canary was written" if canary.exists() else "")


# -- bombs -------------------------------------------------------------------------------------------------------------


def bombs(task: str, plan: Plan) -> Iterator[Tried]:
    """Image files that would fill the memory or never end: each is refused at once, in a line, in little memory."""
    from hostile import images

    def measured(make: Any, number: int) -> str:
        before = _megabytes()
        folder = plan.folder / str(number)
        folder.mkdir()
        wrong = images.failure(make, folder)
        return wrong or ("" if _megabytes() < before + 200 else f"took {_megabytes() - before:.0f} MB")

    images.decode(images.CONTROLS["PNG"](plan.folder))  # what is loaded when it is needed is loaded now
    if task == "bombs":
        for number, (name, make) in enumerate(plan.some(images.CASES.items())):
            yield Tried(name, measured(make, number))
        return
    for number, (name, make) in enumerate(images.CONTROLS.items()):
        yield Tried(f"a harmless {name}", measured(make, number))
    before = _megabytes()
    images.decode(images.CASES["PNG of 20,000 x 20,000"](plan.folder), max_megapixels=1000)
    yield Tried(
        "decoded without a limit", f"took {_megabytes() - before:.0f} MB" if _megabytes() > before + 200 else ""
    )
    waiting = "import sys; open(sys.argv[1], 'rb').read()"
    reader = subprocess.Popen([sys.executable, "-c", waiting, str(images.fifo(plan.folder))])
    with contextlib.suppress(subprocess.TimeoutExpired):
        reader.wait(images.SECONDS)
    yield Tried("a FIFO, simply opened", "waits" if reader.poll() is None else "")
    reader.kill()
    reader.wait()


def _megabytes() -> float:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


# -- closed streams ----------------------------------------------------------------------------------------------------


def stream_tasks() -> list[str]:
    from hostile import streams

    return list(streams.COMMANDS)


def closed_streams(task: str, plan: Plan) -> Iterator[Tried]:
    """Standard streams that are closed, full or read by nobody, of every command."""
    from hostile import streams

    if task == CONTROL:
        plain = ["-c", "print('a line')"]
        for stream in ("full output", "output that nobody reads"):
            ended = streams.run(plain, stream, plan.folder, program=())
            yield Tried(
                f"a Python program without care, {stream}", streams.fault("version", stream, ended, plan.folder)
            )
        ended = streams.run(["-c", "import sys; sys.stderr.write('a line')"], "full error", plan.folder, program=())
        yield Tried("the same, full error", streams.fault("version", "full error", ended, plan.folder))
        return
    streams.prepare(plan.folder)
    for stream in plan.some(streams.STREAMS):
        shutil.rmtree(plan.folder / "NEW", ignore_errors=True)
        yield Tried(stream, streams.failure(task, stream, plan.folder))


# -- damaged files -----------------------------------------------------------------------------------------------------

_DAMAGES, _DAMAGES_SLOW = 24, 4  # of a file, for each command that reads it


def file_tasks() -> list[str]:
    from hostile import files

    return list(files.READ_BY)


def damaged_files(task: str, plan: Plan) -> Iterator[Tried]:
    """Every file of a run's folder, damaged, through every command that reads it."""
    from hostile import files

    work = plan.folder / "work"
    work.mkdir()
    if task == CONTROL:
        from offramp import json_files

        run = files.prepare(plan.folder, quickly=True)
        with mock.patch.object(json_files, "parse_json", json.loads):
            deep = files.failure(run, "config.json", files.TEXTS["nested objects"], "cost", work)
        yield Tried("depth is not looked at", deep)
        with mock.patch.object(json_files, "convert", lambda value, *_, **__: value):
            other = files.failure(run, "split.json", b"[]", "certify", work)
        yield Tried("types are not looked at", other)
        return
    run = files.prepare(plan.folder, quickly=task not in ("bench.json", "verdict.json"))
    content = (run / task).read_bytes()
    for number, (what, damaged) in enumerate(files.damages(task, content, plan.number(_DAMAGES), plan.seed)):
        for command in files.READ_BY[task]:
            if command not in files.SLOW or number < plan.number(_DAMAGES_SLOW):
                yield Tried(f"{what}; {command}", files.failure(run, task, damaged, command, work))


# -- trainings that run away -------------------------------------------------------------------------------------------


def training_tasks() -> list[str]:
    from hostile import trainings

    return list(trainings.WAYS)


def runaway_trainings(task: str, plan: Plan) -> Iterator[Tried]:
    """Absurd rates: what a folder holds afterwards is finite, and what is said of it is so."""
    from hostile import trainings
    from offramp.training.loop import Loop

    if task == CONTROL:
        with mock.patch.object(Loop, "_check_state"):
            wrong = trainings.failure(trainings.CASES["meta-gf, rate 1e4"], plan.folder / "run")
        yield Tried("nothing is looked at before a save", wrong)
        return
    cases = plan.some((case, words) for case, words in trainings.CASES.items() if case.startswith(f"{task}, "))
    for number, (case, arguments) in enumerate(cases):
        yield Tried(case, trainings.failure(arguments, plan.folder / str(number)))


# -- all of it ---------------------------------------------------------------------------------------------------------

Run = Callable[[str, Plan], Iterator[Tried]]
SECTIONS: dict[str, tuple[Run, Callable[[], list[str]]]] = {
    "kills": (kills, lambda: list(KILLS)),
    "flipped bits": (flipped_bits, bit_tasks),
    "hostile folders": (hostile_folders, name_tasks),
    "bombs": (bombs, lambda: ["bombs"]),
    "closed streams": (closed_streams, stream_tasks),
    "damaged files": (damaged_files, file_tasks),
    "trainings": (runaway_trainings, training_tasks),
}


def run_task(section: str, task: str, plan: Plan, result: Path) -> None:
    """What a process of its own does: a task, whose outcomes go to a file, one a line."""
    import torch

    torch.set_num_threads(1)
    with open(result, "w", encoding="utf-8") as file:
        try:
            for tried in SECTIONS[section][0](task, plan):
                file.write(json.dumps(tried) + "\n")
                file.flush()
        except Exception as error:
            where = traceback.format_exc().splitlines()[-3].strip()
            file.write(json.dumps(Tried("the check itself", f"{type(error).__name__}: {error} {where}"[:500])) + "\n")
        file.write("\n")  # the end


def outcomes(section: str, task: str, share: float, seed: int) -> list[Tried]:
    """A task in a process and a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as name:
        folder, result = Path(name, "work"), Path(name, "result.jsonl")
        folder.mkdir()
        result.touch()
        settings = {"XDG_STATE_HOME": f"{name}/state", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        environment = {key: value for key, value in os.environ.items() if key != "OFFRAMP_ALLOW_CODE"} | settings
        command = [sys.executable, __file__, "--share", str(share), "--seed", str(seed), "--only", f"{section}: {task}"]
        with open(Path(name, "errors"), "wb") as errors:
            process = subprocess.Popen(
                [*command, "--into", name],
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        wrong = ""
        try:
            if (status := process.wait(MINUTES * 60)) != 0:
                wrong = f"it ended with status {status}: {Path(name, 'errors').read_text(errors='replace')[-300:]}"
        except subprocess.TimeoutExpired:
            wrong = f"it did not end in {MINUTES} minutes"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        lines = result.read_text().splitlines()
        found = [Tried(*json.loads(line)) for line in lines if line]
        if wrong or "" not in lines:
            after = f", after {found[-1].case}" if found else ""
            found.append(Tried(f"the process{after}", wrong or "it ended on the way"))
        return found


def chosen(only: list[str]) -> list[tuple[str, str]]:
    """The tasks that are asked for, as `SECTION` or `SECTION: TASK`; all where nothing is."""
    every = [(section, task) for section, (_, tasks) in SECTIONS.items() for task in [*tasks(), CONTROL]]
    if not only:
        return every
    found = [pair for pair in every if pair[0] in only or ": ".join(pair) in only]
    if not found:
        raise SystemExit(f"torture: there is no {', '.join(only)}; there are: {', '.join(SECTIONS)}")
    return found


def conditions() -> str:
    """What the figures depend on."""
    names = ("torch", "torchvision", "numpy", "safetensors")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    git = ["git", "-C", str(TESTS), "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    today = datetime.date.today().isoformat()
    return f"{today}, commit {commit}, {os.cpu_count()} cores of {cpu}, Python {platform.python_version()}, {versions}"


def table(totals: dict[str, Total]) -> str:
    """In Markdown; of the controls, how many showed that their check can fail."""
    rows = [["", "tried", "held", "failed", "controls that failed, as they should"]]
    for name, total in totals.items():
        shown = f"{sum(total.controls)} of {len(total.controls)}"
        rows.append([name, f"{total.tried:,}", f"{total.tried - total.failed:,}", f"{total.failed:,}", shown])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 1) + (":" if place else "-") for place, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 where something failed, or a control did not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="SECTION[: TASK]", help="may be repeated")
    parser.add_argument("--share", type=float, default=1.0, help="of the cases, above 0; 1 for all")
    parser.add_argument("--seed", type=int, default=0, help="of what is random")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # a task's own process
    options = parser.parse_args(arguments)
    tasks = chosen(options.only)
    if options.into:
        run_task(*tasks[0], Plan(options.share, options.seed, options.into / "work"), options.into / "result.jsonl")
        return 0
    totals = {section: Total() for section in dict.fromkeys(section for section, _ in tasks)}
    wrong: list[str] = []
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        waiting = {pool.submit(outcomes, *task, options.share, options.seed): task for task in tasks}
        for number, done in enumerate(as_completed(waiting), 1):
            section, task = waiting[done]
            again = (
                f'python tests/torture.py --only "{section}: {task}" --share {options.share:g} --seed {options.seed}'
            )
            total, failed = totals[section], 0
            for one in done.result():
                if one.note:
                    total.notes[one.note] = total.notes.get(one.note, 0) + one.times
                elif task == CONTROL:
                    total.controls.append(bool(one.failure))
                    if not one.failure:
                        wrong.append(f"{section}, control that did not fail: {one.case}\n    {again}")
                else:
                    total.tried += one.times
                    failed += one.times if one.failure else 0
                    wrong += [f"{section}, {task}: {one.case}: {one.failure}\n    {again}"] if one.failure else []
            total.failed += failed
            minutes = (time.monotonic() - started) / 60
            print(
                f"{number}/{len(tasks)} {minutes:5.1f} min  {section}: {task}  {failed or 'none'} failed",
                file=sys.stderr,
            )
    print(table(totals))
    for total in totals.values():
        print(*(f"\n{number} {note}" for note, number in total.notes.items()), sep="", end="")
    print(f"\n{conditions()}; {(time.monotonic() - started) / 60:.0f} minutes")
    for line in wrong[:SHOWN]:
        print(f"\nFAILED {line}")
    if len(wrong) > SHOWN:
        print(f"\nand {len(wrong) - SHOWN} more")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
