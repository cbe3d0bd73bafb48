"""What was measured of an engine, for the terminal: a table of all speeds, then a block for each way of feeding it."""

from collections.abc import Iterator
from pathlib import PurePath

from rich.console import Group, RenderableType
from rich.text import Text

from offramp.results.bench import Accuracy, Bench, Mode
from offramp.show.terminal import ruled_table
from offramp.terminal import short


def bench_table(bench: Bench) -> RenderableType:
    """Accuracy, operations, milliseconds of exits and engine; how much of the promise came true, and why not more."""
    modes = list(bench.modes.values())
    first, *others = (mode.title for mode in modes)
    table = ruled_table("exit", "top-1 %", "drop, points (95 %)", "operations", f"ms: {first}", *others)
    for k, exit in enumerate(bench.exits):
        last = k == len(bench.exits) - 1
        times = [f"{mode.exits[k].ms:.3g}" for mode in modes]
        name = f"{k + 1}, straight" if last else str(k + 1)
        table.add_row(name, f"{exit.top1:.2f}", "" if last else _drop(exit), short(exit.operations), *times)
    table.add_section()
    times = [f"{mode.engine.ms:.3g}" for mode in modes]
    table.add_row("engine", f"{bench.accuracy.top1:.2f}", _drop(bench.accuracy), short(bench.operations), *times)
    blocks = [line for mode in modes for line in _block(bench, mode)]
    return Group(table, *map(Text, [*blocks, "", *_remarks(bench)]))


def _drop(exit: Accuracy) -> str:
    return f"{exit.drop:.2f} ({exit.low:.2f} to {exit.high:.2f})"


def _block(bench: Bench, mode: Mode) -> Iterator[str]:
    engine = mode.engine
    yield ""
    yield (
        f"{mode.title}: {engine.times:.2f} times as fast as straight ({engine.low:.2f} to {engine.high:.2f}), "
        f"promised {mode.promised:.2f}, so {mode.realised:.0%} of it"
    )
    if len(mode.asks) == 1:
        yield "  runs straight on, no exit asked: that leaving early pays was not seen here"
    elif mode.asks != bench.asks:
        yield (
            f"  asks exits {', '.join(map(str, mode.asks))}: {mode.accuracy.top1:.2f} %, drop {_drop(mode.accuracy)}, "
            f"{short(mode.operations)} operations"
        )
    chunk = "" if mode.straight.chunk is None else f"; {mode.straight.chunk} at a time"
    yield (
        f"  {engine.images_per_second:,.0f} images/s, straight {mode.straight.images_per_second:,.0f} "
        f"({mode.straight_form}{chunk})"
    )
    if engine.latency is not None and mode.straight.latency is not None:
        rows = (
            f"{times.p50:.3g}, {times.p95:.3g}, {times.p99:.3g}" for times in (engine.latency, mode.straight.latency)
        )
        yield f"  ms of an image at p50, p95, p99: {next(rows)}; straight {next(rows)}"
    spent = mode.account
    yield (
        f"  time: {spent.stages:.0%} stages at straight's speed, {spent.slower:.0%} their being slower "
        f"({spent.idle_rows:.0%} of rows idle), {spent.exits:.0%} heads, {spent.rest:.0%} dropping rows and Python"
    )
    yield f"  {_differing(mode)}"


def _differing(measured: Bench | Mode) -> str:
    agreement = measured.agreement
    return (
        f"{agreement.flips} of {agreement.images:,} answers differ from the policy's on the plain network by rounding"
        + (f", {agreement.wrong} by more than that" if agreement.wrong else "")
    )


def _remarks(bench: Bench) -> Iterator[str]:
    where = bench.conditions
    policy = "given"
    if bench.policy_file is not None:
        policy = PurePath(bench.policy_file).name
    elif "max_drop" in bench.policy.found:
        policy = f"found for a drop of {bench.policy.found['max_drop']:g} points"
        alone = bench.policy.found.get("procedure") == "last exit alone"
        policy += ", the last exit alone: no other was shown to lose so little" if alone else ""
    yield (
        f"{bench.data.test}, {bench.data.images:,} images; policy: {policy}; engine tuned on {bench.tuned_on} "
        f"({bench.tuning.form})"
    )
    kernels = "" if where.kernels_kept is None else f"oneDNN keeps {where.kernels_kept:,} kernels, "
    yield (f"{where}, torch {where.torch}, {_runtime(bench)}{kernels}load before it {where.load_average}")
    for trial in bench.tuning.forms:
        if trial.reason is not None:
            yield f"not tried: {trial.form}: {trial.reason}"
        elif not trial.admitted:
            yield f"not used: {trial.form}: {trial.flips} answers flipped, {trial.wrong} were wrong"
    yield "times: median of paired rounds (90 % interval); intervals cover timing, and not which images were timed"
    yield f"engine on all of {bench.data.test}: {_differing(bench)}"


def _runtime(bench: Bench) -> str:
    """The versions of the libraries that something was run by."""
    forms = [str(bench.tuning.form), *(mode.straight_form for mode in bench.modes.values())]
    ran = [name for name in ("onnxruntime", "openvino") if any(form.startswith(name) for form in forms)]
    return "".join(f"{name} {getattr(bench.conditions, name)}, " for name in ran)
