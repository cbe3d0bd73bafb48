"""A finished run's engine, timed: do early exits really skip work on this machine, and where does the time go?"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from offramp.checks import check_number
from offramp.costs import Cost, cost
from offramp.data import Parts
from offramp.devices import device_named, with_threads
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import Record, policy_for, recorded
from offramp.evaluation.targets import check_target
from offramp.network import EarlyExitNet
from offramp.policy import Policy
from offramp.reports import bench_plots, figures
from offramp.reports.bench_figures import Bench, Mode, accuracy
from offramp.reports.bench_timing import TRIALS, Feed, Rivals, in_the_time, measure, on_test, right, round_of, whole
from offramp.reports.durations import duration_in_words
from offramp.reports.loading import (
    Bars,
    check_trained_on,
    given_policy,
    held_out,
    named,
    network_of,
    parts_of,
)
from offramp.reports.sample import pool
from offramp.runs import RunFolder
from offramp.runtime import Engine, Form, Plan, Tuning, usual_forms
from offramp.runtime.program import Backend
from offramp.runtime.rows import joined
from offramp.runtime.timing import conditions
from offramp.storage import write_atomically

Countdown = Callable[[], AbstractContextManager[Callable[[float], object]]]  # shows what share is done, in [0, 1]
MAX_DROP = 0.2  # percentage points; of the policy that is found where the run has none
BATCHES = (1, 32, 256)
ROUNDS = 15
LEAST_ROUNDS = 5  # of which the lowest and the highest are a 90 % interval
TUNED_ON = 512  # images
SECONDS = 140.0  # that all may take by default, without setting forms up
TUNING = 0.2  # the share of it that tuning takes
OF_STREAM = 3.0  # times as much as a size of batch: short streams are decided by their last, half-full chunks


@dataclass(frozen=True)
class BenchOptions:
    """How times are taken: the arguments of `bench` by these names, and the forms to try."""

    batches: Sequence[int]
    limit: int | None
    rounds: int
    seconds: float
    forms: Sequence[Form]
    note: Callable[[str], None]
    countdown: Countdown


def bench(
    run: str | Path,
    *,
    policy: Policy | str | Path | None = None,
    max_drop: float | None = None,
    batches: Sequence[int] = BATCHES,
    limit: int | None = None,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    threads: int | None = None,
    bf16: bool = False,
    backend: Backend | Literal["auto"] = "auto",
    out: str | Path | None = None,
    plots: Literal["svg", "png"] | None = None,
    parts: Parts | None = None,
    into: EarlyExitNet | None = None,
    root: str | None = None,
    allow_code: Sequence[str] = (),
    device: str = "auto",
    batch_size: int | None = None,
    bars: Bars = contextlib.nullcontext,
    note: Callable[[str], None] = lambda text: None,
    countdown: Countdown = lambda: contextlib.nullcontext(lambda share: None),
) -> Bench:
    """Measure what a run's early exits save in time, beside what they save in operations.

    The engine, tuned on `search`, takes turns with the network run straight to its last exit, and with the network cut
    at each exit, all in one process and on the same test images. Written is `bench.json` in the run's folder, which
    `find_policy` reads for latencies. Where answers are not the policy's, `Bench.wrong` counts them.

    Args:
        run: The run's folder.
        policy: Who leaves where: a policy or its file. Default: `policy.json` in the run's folder; without one, and
            where `max_drop` is given, thresholds are found on `search`.
        max_drop: Percentage points of accuracy that these may lose; 0.2 if they are found and it is not given.
        batches: Sizes of batches to measure. A stream is measured always.
        limit: Images timed in a round, at most (but a whole batch); at most 100 one at a time, about 256 in
            batches, 4,096 in a stream, of large images fewer: 512 MB.
        rounds: How many times each variant takes its turn.
        seconds: About how long it may take, a fifth of it for tuning: rounds have as many images as fit. Reading data
            and making files for libraries are beside it.
        threads: Threads of torch, while it is measured.
        bf16: Let engine and rivals compute in bfloat16 where that is faster and answers stay the same within rounding.
        backend: What may run the network: torch, onnxruntime, openvino; auto tries all there are. Files for the
            latter two are made once for these weights, which takes seconds to a minute.
        out: Another file than `bench.json`.
        plots: Also draw accuracy against operations and against time, into `plots/`, as files of this kind.
        parts: The data, for a run that was fit from Python with data made by hand.
        into: A network of the same make, for one that was built by hand.
        root: Folder that holds the data set's files, if it is not where it was in training.
        allow_code: Packages whose code the run may name: see `offramp.load`.
        device: auto (the GPU if there is one), cpu, cuda or cuda:N.
        batch_size: Largest number of images in one forward pass of the plain network, below the run's own batch size.
        bars: Shows progress while data sets are read; closed before anything is timed.
        note: Called with progress messages.
        countdown: Shows what share is done, between rounds, while the context that it gives is open.

    Raises:
        UsageError: A network with one exit; a run without held-out images and without a policy; settings that cannot
            be; other data; a policy for another network; a folder as `out`.
        OfframpError: A file that cannot be written, which is said before anything is measured.
    """
    _check(policy, max_drop, batches, limit, rounds, threads)
    check_number("seconds", seconds, "above 0", lambda value: value > 0)
    with with_threads(threads):
        measured_on = conditions(device_named(device))  # before the machine is busy with us
    if plots is not None:
        figures.require()
    folder = RunFolder(run, allow_code)
    network = network_of(folder, into, device, "logits of the test set are kept in its records, wherever `out` is")
    target = _target(folder, out)
    config = folder.read_config()
    parts = parts or parts_of(folder, config, root, "offramp.reports.bench")
    check_trained_on(parts, folder, config)
    ready, file = given_policy(policy, folder) if max_drop is None else (None, None)
    _check_network(network, ready, folder, parts)
    costs = cost(network, parts.test.image_shape)
    if max_drop is not None:
        check_target(costs, max_drop=max_drop)
    with bars() as progress:
        search = None
        if parts.val.splits() and (ready is None or plots is not None):
            (search,) = held_out(folder, network, parts, ("search",), batch_size=batch_size, progress=progress)
        path, tell = folder.record("test"), named(progress, "test")
        test = recorded(network, parts.test, path, batch_size=batch_size, progress=tell)
    if ready is None:
        assert search is not None
        ready = policy_for(search, costs, max_drop=MAX_DROP if max_drop is None else max_drop)
    forms = usual_forms(device_named(device), backend=backend, bf16=bf16)
    options = BenchOptions(batches, limit, rounds, seconds, forms, note, countdown)
    with with_threads(threads):
        measured = _measured(folder, network, ready, parts, test, costs, options, measured_on)
    measured = dataclasses.replace(measured, policy_file=file)
    files = {target: (json.dumps(measured.to_json(), indent=1) + "\n").encode()}
    if plots is not None:
        for name, content in bench_plots.drawn(measured, search, test, costs, plots).items():
            files[folder.plots / f"{name}.{plots}"] = content
    for written, content in files.items():
        write_atomically(written, content)
    return dataclasses.replace(measured, written=tuple(files))


def _check(
    policy: object,
    max_drop: float | None,
    batches: Sequence[int],
    limit: int | None,
    rounds: int,
    threads: int | None,
) -> None:
    if policy is not None and max_drop is not None:
        raise UsageError("Give a policy or max_drop, for which one is found, not both.")
    if not batches or len(set(batches)) < len(batches):
        raise UsageError(f"batches must be one size or more, each once, not {list(batches)}.")
    for name, value, least in (
        ("Each of batches", min(batches), 1),
        ("limit", limit, 1),
        ("threads", threads, 1),
        ("rounds", rounds, LEAST_ROUNDS),
    ):
        if value is not None and value < least:
            raise UsageError(f"{name} must be at least {least}, not {value}.")


def _target(folder: RunFolder, out: str | Path | None) -> Path:
    """The file to write. Where it cannot be, that is said before minutes of timing and not after."""
    target = folder.bench if out is None else Path(out).expanduser()
    if target.is_dir():
        raise UsageError(f"{target} is a folder; name a file for what is measured.")
    above = next(place for place in target.absolute().parents if os.path.lexists(place))
    if not above.is_dir() or not os.access(above, os.W_OK):
        reason = "not writable" if above.is_dir() else "no folder"
        raise OfframpError(f"{target} cannot be written: {above} is {reason}. Name another file.")
    return target


def _check_network(network: EarlyExitNet, policy: Policy | None, folder: RunFolder, parts: Parts) -> None:
    """Refuse what cannot be measured before anything is read."""
    if network.num_exits == 1:
        raise UsageError(f"The network of {folder.path} has one exit, so no image can leave early.")
    if policy is not None:
        Engine(network, policy)  # refuses a policy for another network
    elif not parts.val.splits():
        raise UsageError(
            f"Thresholds are found on held-out images, and {folder.path} held none out (holdout=0): give a policy, or "
            "train with a holdout."
        )


def _modes(
    engine: Engine,
    tuning: Tuning,
    parts: Parts,
    test: Record,
    costs: Cost,
    options: BenchOptions,
    done: Callable[[float], object],
) -> list[Mode]:
    """Each size of batch and a stream, timed."""
    rivals = Rivals(engine, [trial.form for trial in tuning.forms if trial.admitted])
    sizes = (*options.batches, None)
    weights = [*[1.0] * len(options.batches), OF_STREAM]
    image = pool(parts.test, 1).images_SCHW
    modes, before = [], TUNING
    for size, weight in zip(sizes, weights, strict=True):
        options.note(f"Timing {'a stream' if size is None else f'batches of {size}'}.")
        share = (1 - TUNING) * weight / sum(weights)
        limit = in_the_time(engine, size, image, options.rounds, share * options.seconds)
        limit = limit if options.limit is None else min(limit, options.limit)
        feed = Feed.of(size, pool(parts.test, round_of(size, limit, costs.image_shape)[1]), limit)
        turns, passed = 2 * (TRIALS + 1) + options.rounds + 2, 0

        def tick(before: float = before, share: float = share, turns: int = turns) -> None:
            nonlocal passed
            passed += 1
            done(before + share * min(1.0, passed / turns))

        exit_ms = tuning.exit_ms[feed.name]
        modes.append(measure(engine, feed, rivals.fastest(feed, tick), test, costs, options.rounds, exit_ms, tick))
        before += share
        done(before)
    return modes


def _measured(
    folder: RunFolder,
    network: EarlyExitNet,
    policy: Policy,
    parts: Parts,
    test: Record,
    costs: Cost,
    options: BenchOptions,
    measured_on: dict[str, Any],
) -> Bench:
    engine = Engine(network, policy)
    held = parts.val.splits()
    # Without held-out images those trained on have to do: on them exits are surer than they will be, so the engine may
    # be set up for other shares of images than come, which costs time and is seen in the figures.
    tuned_on = parts.val.search if held else parts.train
    options.note(
        f"Tuning the engine on images of {tuned_on.name}, then timing it: about {duration_in_words(options.seconds)}, "
        f"and what it takes to set up each of {'; '.join(map(str, options.forms))}."
    )
    images = pool(tuned_on, max(TUNED_ON, *options.batches)).images_SCHW
    with options.countdown() as done:
        tuning = engine.tune(images, batch_sizes=options.batches, forms=options.forms, seconds=TUNING * options.seconds)
        done(TUNING)
        modes = _modes(engine, tuning, parts, test, costs, options, done)
    options.note(f"Comparing the engine's answers with the policy's on {test.split}.")
    engine = whole(engine)
    answers = joined(engine.stream(batch.images_BCHW for batch in parts.test.batches()))
    found = on_test(answers, policy, engine.operations(Plan(), costs.image_shape), test)
    full_S = right(policy, test, -1)
    return Bench(
        run=folder,
        policy=policy,
        policy_file=None,
        weights=test.weights,
        device=measured_on["device"],
        conditions=measured_on,
        tuning=tuning,
        tuned_on=tuned_on.name,
        test=test.split,
        fingerprint=test.fingerprint,
        images=test.num_images,
        accuracy=found.accuracy,
        operations=found.operations_S.mean().item(),
        asks=tuple(k + 1 for k in engine.asks(engine.stream_plan)),
        exits=tuple(accuracy(right(policy, test, k), full_S) for k in range(network.num_exits)),
        exit_operations=tuple(count.operations for count in costs.path),
        modes=tuple(modes),
        agreement=engine.agreement(answers, test.logits_KSC, policy),
    )
