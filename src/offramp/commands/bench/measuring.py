"""A run's engine tuned, and timed in turns with its rivals."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from offramp.commands.bench.timing import TRIALS, Feed, Rivals, in_the_time, measure, on_test, right, round_of, whole
from offramp.commands.open_run import OpenRun
from offramp.commands.options import AnyBackend
from offramp.commands.sample import pool
from offramp.costs import Cost
from offramp.data import Parts
from offramp.devices import device_named
from offramp.evaluation import Record, policy_for
from offramp.policy import Policy
from offramp.results.bench import Bench, Conditions, CutAccuracy, Mode, TestImages, accuracy
from offramp.runtime import Engine, Form, Plan, Tuning, usual_forms
from offramp.runtime.program import certified_form, check_form
from offramp.runtime.rows import joined
from offramp.show.watch import Watch
from offramp.terminal import duration_in_words

TUNED_ON = 512  # images
TUNING = 0.2  # the share of the time that tuning takes
OF_STREAM = 3.0  # times as much as a size of batch: short streams are decided by their last, half-full chunks


class Timing(NamedTuple):
    """What is timed, and for how long: as `BenchOptions` says."""

    batches: Sequence[int]
    limit: int | None
    rounds: int
    seconds: float


class Subject(NamedTuple):
    """What is timed: a run's network under a policy, in these forms.

    `test` and `search` are logits of the form that the policy was certified in, else of the network as it is.
    """

    run: OpenRun
    policy: Policy
    policy_file: Path | None
    forms: Sequence[Form]
    test: Record
    search: Record | None


def subject(
    run: OpenRun,
    policy: Policy | None,
    policy_file: Path | None,
    *,
    max_drop: float,
    device: str,
    backend: AnyBackend,
    bf16: bool,
    curve: bool,
    watch: Watch,
) -> Subject:
    """Records and forms for a policy, or for one that is found here, for `max_drop`, where there is none.

    With `curve` there is a record of `search` wherever images were held out. What cannot be timed is refused first.
    """
    if policy is None or run.network.num_exits == 1:
        run.check_thresholds()
    form = None if policy is None else certified_form(policy)
    if policy is None or form is None:
        forms = usual_forms(device_named(device), backend=backend, bf16=bf16)
    else:
        check_form(Form(form.backend if backend == "auto" else backend, "bf16" if bf16 else form.precision), policy)
        forms = (form,)
    program = run.program(form)
    if policy is not None:
        Engine(run.network, policy)  # refuses a policy for another network
    with watch.bars() as progress:
        search = None
        if run.parts.val.splits() and (policy is None or curve):
            (search,) = run.held_out("search", progress=progress, program=program)
        test = run.record(run.parts.test, "test", progress, program=program)
    if policy is None:
        assert search is not None
        policy = policy_for(search, run.cost, max_drop=max_drop)
    return Subject(run, policy, policy_file, forms, test, search)


def measured(timed: Subject, timing: Timing, watch: Watch, conditions: dict[str, Any]) -> Bench:
    """What early exits save; `conditions` are those of the machine before it was busy."""
    run, policy, test, forms = timed.run, timed.policy, timed.test, timed.forms
    parts, costs = run.parts, run.cost
    engine = Engine(run.network, policy)
    held = parts.val.splits()
    # Without held-out images those trained on have to do: on them exits are surer than they will be, so the engine may
    # be set up for other shares of images than come, which costs time and is seen in the figures.
    tuned_on = parts.val.search if held else parts.train
    watch.note(
        f"Tuning the engine on images of {tuned_on.name}, then timing it: about {duration_in_words(timing.seconds)}, "
        f"and what it takes to set up each of {'; '.join(map(str, forms))}."
    )
    images = pool(tuned_on, max(TUNED_ON, *timing.batches)).images_SCHW
    with watch.countdown() as done:
        tuning = engine.tune(images, batch_sizes=timing.batches, forms=forms, seconds=TUNING * timing.seconds)
        done(TUNING)
        modes = _modes(engine, tuning, parts, test, costs, timing, watch, done)
    watch.note(f"Comparing the engine's answers with the policy's on {test.split}.")
    engine = whole(engine)
    answers = joined(engine.stream(batch.images_BCHW for batch in parts.test.batches()))
    spent_K = engine.operations(Plan(), costs.image_shape)
    on_all = on_test(answers.labels_B, answers.exits_B, policy, spent_K, test)
    full_S = right(policy, test, -1)
    cut = [accuracy(right(policy, test, k), full_S) for k in range(run.network.num_exits)]
    return Bench(
        weights=test.weights,
        conditions=Conditions(**conditions),
        data=TestImages(test.split, test.fingerprint, test.num_images),
        tuned_on=tuned_on.name,
        policy=policy,
        policy_file=None if timed.policy_file is None else str(timed.policy_file),
        accuracy=on_all.accuracy,
        operations=on_all.operations_S.mean().item(),
        asks=tuple(k + 1 for k in engine.asks(engine.stream_plan)),
        exits=tuple(CutAccuracy(**vars(of), operations=on.operations) for of, on in zip(cut, costs.path, strict=True)),
        modes={mode.name: mode for mode in modes},
        agreement=engine.agreement(answers, test.logits_KSC, policy),
        tuning=tuning,
    )


def _modes(
    engine: Engine,
    tuning: Tuning,
    parts: Parts,
    test: Record,
    costs: Cost,
    timing: Timing,
    watch: Watch,
    done: Callable[[float], object],
) -> list[Mode]:
    """Each size of batch and a stream, timed."""
    rivals = Rivals(engine, [trial.form for trial in tuning.forms if trial.admitted])
    sizes = (*timing.batches, None)
    weights = [*[1.0] * len(timing.batches), OF_STREAM]
    image = pool(parts.test, 1).images_SCHW
    modes, before = [], TUNING
    for size, weight in zip(sizes, weights, strict=True):
        watch.note(f"Timing {'a stream' if size is None else f'batches of {size}'}.")
        share = (1 - TUNING) * weight / sum(weights)
        limit = in_the_time(engine, size, image, timing.rounds, share * timing.seconds)
        limit = limit if timing.limit is None else min(limit, timing.limit)
        feed = Feed.of(size, pool(parts.test, round_of(size, limit, costs.image_shape)[1]), limit)
        turns, passed = 2 * (TRIALS + 1) + timing.rounds + 2, 0

        def tick(before: float = before, share: float = share, turns: int = turns) -> None:
            nonlocal passed
            passed += 1
            done(before + share * min(1.0, passed / turns))

        exit_ms = tuning.exit_ms[feed.name]
        modes.append(measure(engine, feed, rivals.fastest(feed, tick), test, costs, timing.rounds, exit_ms, tick))
        before += share
        done(before)
    return modes
