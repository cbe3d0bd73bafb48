"""What early exits are worth where many requests share a machine: images answered in time, by load and discipline.

    python benchmarks/serving.py [--rounds 5] [--seconds 1] [--threads 2] [--only TEXT] [--quick] [--out FILE]

Open-loop load, Poisson and in bursts of 1 to 31, from a process of its own (`load.py`) over a Unix socket into the
scheduler of `offramp serve`, at 0.5, 0.8, 1, 2 and 10 times the capacity with exits. The shipped Fashion-MNIST network
and MSDNet-7 with random weights, under the shares of early_exits.py, in float32 by the backend that is fastest straight
on. An image counts if its answer is there within 50 ms of when it was due. All of it takes half an hour, and the file
is written anew after each network; --only takes those whose name has a text in it. With --quick less of everything: no
MSDNet-7, no bursts, two loads, no whole batches over HTTP.

- exits: the scheduler as it is.
- whole requests: dynamic batching without exits, the whole network in one piece.
- whole batches: exits, but a batch leaves when all of it may.

All three have the same code around them: places, order, refusals. Each gets the chunk and the limit of expected waiting
(`within_ms`) that answer most in time at twice the capacity, found beforehand. Then they take turns, load by load.

Each network also over HTTP: PNG files over 480 connections that are kept, to the application of `offramp serve` in
uvicorn, before each discipline's scheduler. Its capacity is what 16 connections get that always ask.

Beside that: the processor's time an image of everything that is not the network (in process of a network that answers
at once; over HTTP of the threads that serve, less that in segments), and how soon after ten times the capacity the 99th
percentile is what it was.
"""

import argparse
import functools
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import caches  # isort: skip  # noqa: F401  sets what torch reads when it is loaded

import load
import numpy as np
import over_http
import rows
import torch
from early_exits import networks, policy_for, shipped
from over_http import Front, Timed, Used
from torch import Tensor

from offramp.network import Carry, EarlyExitNet
from offramp.policy import Policy
from offramp.runtime import SIZES, Form, Plan, usual_forms
from offramp.runtime.backends import make_program
from offramp.runtime.plan import segments
from offramp.runtime.program import Program
from offramp.runtime.timing import conditions, take_turns
from offramp.serve.contract import Answer, RefusedError, Request, Served
from offramp.serve.lane import Lane, Outcome, Ran, Ticket, Work
from offramp.serve.model import Model
from offramp.serve.scheduler import Scheduler
from offramp.serve.service import spare_collector

LOADS = (0.5, 0.8, 1.0, 2.0, 10.0)
IN_TIME = 0.05  # seconds
REFUSED_IN = 100.0  # ms: every image is answered or refused within so long
PLACES = 256
CHUNKS, WITHIN_MS = (4, 8, 16, 32), (20.0, 30.0, 40.0)  # of which each discipline gets its best
IMAGES, TRIALS = 256, 3  # the latter of each setting, of which the median counts: one alone picks by chance
EXITS, WHOLE, BATCHES = "exits", "whole requests", "whole batches"
GOALS = {WHOLE: 1.5, BATCHES: 1.0}
CPU_MS = 0.3


class Straight(Program):
    """The whole network as one segment, in the model that the library has for just that."""

    def __init__(self, program: Program) -> None:
        vars(self).update(vars(program))
        self.has_own_threads = program.has_own_threads  # type: ignore[misc]  # as that of the class
        self.program = program

    def _enter(self, images_BCHW: Tensor) -> Carry:
        return (images_BCHW,)

    def segment(self, first: int, last: int, carry: Carry, *, head: bool = True) -> tuple[Tensor | None, Carry]:
        return self.program.straight(carry[0], last), carry

    straight = single = None  # type: ignore[assignment]  # nobody asks


class AtOnce(Straight):
    """A network that answers at once: what is left is everything else."""

    def segment(self, first: int, last: int, carry: Carry, *, head: bool = True) -> tuple[Tensor | None, Carry]:
        return torch.zeros(len(carry[0]), self.num_classes), carry


class WholeBatches(Lane):
    """A batch goes on together, and leaves when all of it may."""

    def _next(self, now: float) -> tuple[int, Ticket] | None:
        under_way = self._oldest(self.between)
        return under_way or ((0, self.coming[0]) if self.coming else None)

    def settle(self, work: Work, ran: Ran, seconds: float, now: float) -> list[Outcome]:
        tickets = [image for image in work.images if isinstance(image, Ticket)]
        leaves = Lane._leaves
        self._all = all(
            leaves(self, ticket, work.last, confidence, ran.dtype)
            for ticket, confidence in zip(tickets, ran.confidences, strict=True)
        )
        return super().settle(work, ran, seconds, now)

    def _leaves(self, ticket: Ticket, k: int, confidence: float, dtype: torch.dtype) -> bool:
        return self._all


class BatchScheduler(Scheduler):
    def _lane(self, model: Model) -> Lane:
        return WholeBatches(model, max_wait=0.0, is_audited=self._is_audited)


@dataclass(frozen=True)
class Network:
    """A network to be served, its policy, its images, and how fast it is with exits, in images a second.

    Over HTTP where it has a front.
    """

    name: str
    program: Program
    policy: Policy
    images_SCHW: Tensor
    capacity: float = 0.0
    front: Front | None = None

    def model(self, way: str, chunk: int, program: Program | None = None) -> Model:
        K = self.program.num_exits
        shape = self.program.image_shape
        assert shape is not None
        names = tuple(map(str, range(self.program.num_classes)))
        served = Served(self.name, way, names, (shape[0], shape[1], shape[2]), (self.policy,), (None,), (1.0,) * K)
        plan = Plan(chunk=chunk, sizes=tuple(size for size in SIZES if size <= chunk))
        if way == WHOLE:
            return Model(served, Straight(program or self.program), ((0, K - 1),), plan)
        return Model(served, program or self.program, segments(range(K)), plan)


class Setting(NamedTuple):
    """How a discipline is run."""

    chunk: int
    within_ms: float


USUAL = Setting(16, 30.0)  # as `offramp serve` has it


class Seen(NamedTuple):
    """What the generator saw, image by image: when due and done, in seconds, and what became of it."""

    due: Any
    done: Any
    kind: Any
    seconds: float

    @property
    def ms(self) -> Any:
        """Milliseconds from when it was due until it was answered or refused."""
        return 1000 * (self.done - self.due)

    @property
    def goodput(self) -> float:
        """Images a second answered in time."""
        return float(((self.kind == load.ANSWERED) & (self.ms <= 1000 * IN_TIME)).sum() / self.seconds)

    @property
    def slowest(self) -> float:
        """Of the answered and refused, in ms; what has neither counts as long as it was waited for."""
        return float(np.where(np.isnan(self.ms), 1000 * load.PATIENCE, self.ms).max())

    def percentile(self, share: float) -> float:
        """Of the answered, in ms; NaN where none was."""
        answered = self.ms[self.kind == load.ANSWERED]
        return float(np.percentile(answered, share)) if len(answered) else float("nan")

    def between(self, first: float, last: float) -> "Seen":
        """Those due then."""
        here = (self.due >= first) & (self.due < last)
        return Seen(self.due[here], self.done[here], self.kind[here], last - first)


class Door:
    """Images come in by number over a socket; what becomes of them goes out. One client at a time."""

    def __init__(self, path: Path, scheduler: Scheduler, images_SCHW: Tensor) -> None:
        self.scheduler, self.images = scheduler, list(images_SCHW)
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listening.bind(str(path))
        self.listening.listen(1)
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        line, _ = self.listening.accept()
        with line:
            rest = b""
            while data := line.recv(2**16):
                data = rest + data
                whole = len(data) // load.ASKED.itemsize * load.ASKED.itemsize
                asked, rest = np.frombuffer(data[:whole], load.ASKED).tolist(), data[whole:]
                refused = []
                for number, image in asked:
                    try:
                        self.scheduler.submit(Request(self.images[image], self._answering(line, number)))
                    except RefusedError:
                        refused.append((number, load.REFUSED, 0))
                self._tell(line, refused)

    def _answering(self, line: socket.socket, number: int) -> Callable[[Answer | RefusedError], None]:
        def on_done(outcome: Answer | RefusedError) -> None:
            told = (load.ANSWERED, outcome.exit) if isinstance(outcome, Answer) else (load.FAILED, 0)
            self._tell(line, [(number, *told)])

        return on_done

    def _tell(self, line: socket.socket, told: Sequence[tuple[int, int, int]]) -> None:
        if told:
            with self.lock:
                line.sendall(np.array(told, load.TOLD).tobytes())

    def close(self) -> None:
        self.thread.join()
        self.listening.close()


@contextmanager
def scheduled(network: Network, way: str, setting: Setting, program: Program | None = None) -> Iterator[Scheduler]:
    """A scheduler that is warm."""
    kind = BatchScheduler if way == BATCHES else Scheduler
    model = network.model(way, setting.chunk, program)
    scheduler = kind(model, max_waiting=PLACES, within_ms=setting.within_ms)
    while not scheduler.snapshot().is_ready:
        time.sleep(0.01)
    try:
        yield scheduler
    finally:
        scheduler.drain(5)


def offered(
    network: Network,
    way: str,
    setting: Setting,
    phases: Sequence[tuple[float, float]],
    *,
    bursts: bool = False,
    program: Program | None = None,
    seed: int = 0,
    used: Used | None = None,
    connections: int | None = None,
) -> tuple[Seen, float]:
    """What becomes of images offered in phases of (images a second, seconds), and this process's processor seconds."""
    with tempfile.TemporaryDirectory() as folder, scheduled(network, way, setting, program) as scheduler:
        path, out = Path(folder, "socket"), Path(folder, "seen.npz")
        words = ["--out", str(out), "--seed", str(seed), *(["--bursts"] if bursts else [])]
        words += [word for phase in phases for word in ("--then", *map(str, phase))]
        started = time.process_time()
        if network.front is not None:
            over_http.offer(network.front, scheduler, used or Used(), words, connections)
        else:
            door = Door(path, scheduler, network.images_SCHW)
            words += ["--images", str(len(network.images_SCHW))]
            subprocess.run([sys.executable, str(Path(load.__file__)), str(path), *words], check=True)
            door.close()
        taken = time.process_time() - started
        with np.load(out) as seen:
            return Seen(seen["due"], seen["done"], seen["kind"], sum(seconds for _, seconds in phases)), taken


def capacity(network: Network, images: int) -> float:
    """Images a second with exits when there always are some."""
    if network.front is not None:  # as many at once as are sure to have a place
        seen, _ = offered(network, EXITS, USUAL, [(1e8, images / 1e8)], connections=USUAL.chunk)
        return float((seen.kind == load.ANSWERED).sum() / np.nanmax(seen.done))
    found: list[Any] = []
    model = network.model(EXITS, 16)
    scheduler = Scheduler(model, max_waiting=images + 1, start=False)
    scheduler.turn()
    for number in range(images):
        scheduler.submit(Request(network.images_SCHW[number % len(network.images_SCHW)], found.append))
    started = time.perf_counter()
    while scheduler.turn():
        pass
    return images / (time.perf_counter() - started)


def best_setting(network: Network, way: str, options: argparse.Namespace) -> tuple[Setting, dict[str, float]]:
    """The chunk, and then the limit, under which most is answered in time at twice the capacity, and what all gave."""
    if options.quick and network.front is not None:
        return USUAL, {}
    tried: dict[Setting, float] = {}
    seconds = max(options.seconds, 0.3 if options.quick else 1.0)
    phases = [(2 * network.capacity, seconds)]

    def best(settings: Sequence[Setting]) -> Setting:
        for setting in settings:
            if setting not in tried:
                trials = [
                    offered(network, way, setting, phases, seed=seed)[0]
                    for seed in range(1 if options.quick else TRIALS)
                ]
                tried[setting] = median(seen.between(seconds / 4, seconds).goodput for seen in trials)
        return max(settings, key=tried.__getitem__)

    found = best([Setting(chunk, USUAL.within_ms) for chunk in ((8, 16) if options.quick else CHUNKS)])
    if not options.quick:
        found = best([Setting(found.chunk, limit) for limit in WITHIN_MS])
    return found, {f"{way}, {setting}": round(value, 1) for setting, value in tried.items()}


def fastest(network: EarlyExitNet, images_SCHW: Tensor) -> tuple[Form, Program]:
    """What runs batches of 16 fastest straight on."""
    programs = {form: make_program(network, form) for form in usual_forms(torch.device("cpu"))}
    batch, last = images_SCHW[:16], network.num_exits - 1

    def run(program: Program) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            program.straight(batch, last)
        return time.perf_counter() - started

    took = take_turns({str(form): functools.partial(run, program) for form, program in programs.items()}, 5)
    form = min(programs, key=lambda form: min(took[str(form)]))
    return form, programs[form]


def opened(options: argparse.Namespace) -> Iterator[Network]:
    """MSDNet-7, unless it is to be quick (a minute to be compiled), and the shipped network; each also over HTTP."""
    for name, network, shares in [shipped()] if options.quick else networks():
        assert network.image_shape is not None
        names = {False: name, True: f"{name} over HTTP"}
        if not any(options.only in name for name in names.values()):
            continue
        images_SCHW = torch.randn(IMAGES, *network.image_shape, generator=torch.Generator().manual_seed(1))
        _, program = fastest(network, images_SCHW)
        for is_over_http, called in names.items():
            if options.only not in called:
                continue
            front = Front(network, IMAGES) if is_over_http else None
            images = images_SCHW if front is None else front.images()
            with torch.inference_mode():
                logits_KSC = torch.cat([network(batch) for batch in torch.split(images, 64)], 1)
            policy = policy_for(logits_KSC, network.num_classes, shares)
            found = Network(called, program, policy, images, front=front)
            spare_collector()
            yield replace(found, capacity=capacity(found, 500 if options.quick else 3000))


def kept(by_load: dict[float, list[Seen]], number: int) -> float:
    """The most images answered in time a second in this round, of the loads whose 99th percentile is in time."""
    seen = [rounds[number] for rounds in by_load.values()]
    in_time = [one.goodput for one in seen if one.percentile(99) <= 1000 * IN_TIME]
    return max(in_time or [one.goodput for one in seen])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The rows, and every discipline under every load."""
    torch.set_num_threads(options.threads)
    options.rounds = 5 if options.quick else options.rounds
    options.seconds = 0.3 if options.quick else options.seconds
    cell = "in time a second, median and 99 % in ms, refused"
    header = " | ".join(f"{way}: {cell}" for way in (EXITS, WHOLE, BATCHES))
    found: dict[str, Any] = {
        "what": "images answered within 50 ms: early exits, whole requests, whole batches",
        **conditions(),
        "rounds": options.rounds,
        "quick": options.quick,
        "seconds": options.seconds,
        "processors": os.cpu_count(),
        "rows": [],
        "table": [f"| network, load | offered a second | {header} |", "|---|---|---|---|---|"],
        "tried, answered in time a second at twice the capacity": (tried := dict[str, dict[str, float]]()),
        "the processor's milliseconds an image at half the capacity": (spent := dict[str, dict[str, float]]()),
    }
    for network in opened(options):
        settings = {}
        for way in (EXITS, WHOLE) if options.quick and network.front is not None else (EXITS, WHOLE, BATCHES):
            settings[way], values = best_setting(network, way, options)
            tried.setdefault(network.name, {}).update(values)
        found["rows"] += compared(network, settings, options, found["table"])
        if network.front is not None or not options.quick:
            found["rows"].append(recovery(network, settings[EXITS], options))
        found["rows"].append(outside(network, settings[EXITS], options))
        if network.front is not None:
            spent[network.name] = parts(network, settings[EXITS], options)
        if options.out is not None:
            options.out.write_text(rows.text(found))
    return found


def compared(
    network: Network, settings: dict[str, Setting], options: argparse.Namespace, table: list[str]
) -> list[rows.Row]:
    """The disciplines in turns, under every load."""
    loads = (1.0, 10.0) if options.quick else LOADS
    shapes = (False,) if options.quick else (False, True)
    results: list[rows.Row] = []
    for bursts in shapes:
        name = f"{network.name}, {'bursts' if bursts else 'Poisson'}"
        seen = {way: {one: list[Seen]() for one in loads} for way in settings}
        for number in range(options.rounds):
            order = [*settings] if number % 2 else [*reversed(settings)]
            for one in loads:
                phases = [(one * network.capacity, options.seconds)]
                for way in order:
                    told, _ = offered(network, way, settings[way], phases, bursts=bursts, seed=number)
                    seen[way][one].append(told)
        for one in loads:
            cells = [described(seen[way][one]) for way in settings]
            table.append(
                f"| {name}, {one:g} x | {one * network.capacity:.0f} | {' | '.join(cells)}{' |' * (4 - len(cells))}"
            )
        best = {way: [max(kept(seen[way], number), 0.01) for number in range(options.rounds)] for way in settings}
        for way in [*settings][1:]:
            goal = GOALS[way]
            label, words = f"{name}: in time a second, exits over {way}", f"at least {goal:g}"
            results.append(rows.paired(label, "times as many", best[EXITS], best[way], words, at_least=goal))
        top = [one.goodput for one in seen[EXITS][loads[-1]]]
        label = f"{name}: in time a second at ten times the capacity over the best"
        results.append(rows.paired(label, "", top, best[EXITS], "at least 0.9", at_least=0.9))
        slowest = [one.slowest for one in seen[EXITS][loads[-1]]]
        label = f"{name}: slowest answer or refusal at ten times the capacity"
        results.append(rows.value(label, "ms", slowest, f"below {REFUSED_IN:g}", below=REFUSED_IN))
        lost = [
            float(np.isin(one.kind, (load.FAILED, load.LOST)).sum())
            for by_load in seen[EXITS].values()
            for one in by_load
        ]
        results.append(rows.value(f"{name}: neither answered nor refused", "images", lost, "none", below=0.5))
    return results


def described(rounds: Sequence[Seen]) -> str:
    """The medians of a cell."""
    goodput = median(one.goodput for one in rounds)
    half, most = (median(one.percentile(share) for one in rounds) for share in (50, 99))
    refused = median(float((one.kind == load.REFUSED).mean()) for one in rounds)
    return f"{goodput:.0f}, {half:.1f} and {most:.1f}, {100 * refused:.0f} %"


def recovery(network: Network, setting: Setting, options: argparse.Namespace) -> rows.Row:
    """The 99th percentile from a second after ten times the capacity on, over what it was before."""
    calm, storm, after = 0.5 * network.capacity, 10 * network.capacity, options.seconds + 1
    now, before = [], []
    for number in range(options.rounds):
        phases = [(calm, options.seconds), (storm, options.seconds), (calm, after)]
        seen, _ = offered(network, EXITS, setting, phases, seed=number)
        before.append(seen.between(0, options.seconds).percentile(99))
        now.append(seen.between(2 * options.seconds + 1, 2 * options.seconds + after).percentile(99))
    label = f"{network.name}: 99th percentile a second after ten times the capacity, over that before"
    return rows.paired(label, "", now, before, "at most 1.5", at_most=1.5)


def outside(network: Network, setting: Setting, options: argparse.Namespace) -> rows.Row:
    """The processor's time an image beside the network.

    In process of a network that answers at once: scheduler, socket, and this benchmark's own door. Over HTTP of the
    network itself, at half the capacity: everything that the server does, but for the segments.
    """
    used = []
    for number in range(options.rounds):
        if network.front is None:
            phases = [(network.capacity, options.seconds)]
            seen, seconds = offered(network, EXITS, setting, phases, program=AtOnce(network.program), seed=number)
        else:
            phases, one = [(0.5 * network.capacity, options.seconds)], Used()
            program = Timed(network.program, one)
            seen, _ = offered(network, EXITS, setting, phases, program=program, seed=number, used=one)
            seconds = one.beside
        used.append(1000 * seconds / len(seen.due))
    what = "without HTTP" if network.front is None else "all of it"
    label = f"{network.name}: the processor's time an image beside the network, {what}"
    return rows.value(label, "ms", used, f"below {CPU_MS:g}", below=CPU_MS)


def parts(network: Network, setting: Setting, options: argparse.Namespace) -> dict[str, float]:
    """Where the processor's milliseconds an image go, with parsing and decoding told apart, which takes some itself."""
    used = Used()
    phases = [(0.5 * network.capacity, 2 * options.seconds)]
    with over_http.parts_timed(used):
        seen, _ = offered(network, EXITS, setting, phases, program=Timed(network.program, used), used=used)
    spent = {
        "parsing": used.parsing,
        "decoding": used.decoding,
        "the event loop, the rest": used.loop - used.parsing - used.decoding,
        "the scheduler": used.scheduler - used.segments,
        "segments": used.segments,
    }
    return {part: round(1000 * seconds / len(seen.due), 4) for part, seconds in spent.items()}


def parser() -> argparse.ArgumentParser:
    """The options of all benchmarks, and how long each load lasts."""
    made = rows.parser(__doc__, rounds=5, threads=2)
    made.add_argument("--seconds", type=float, default=1.0, help="of each load (default 1)")
    made.add_argument("--only", default="", help="networks whose name has this in it")
    return made


if __name__ == "__main__":
    rows.main(parser().parse_args(), measure)
