"""What early exits are worth in a run, in one sentence."""

from offramp.certificate import Certificate
from offramp.evaluation.bounds import Z95, paired_difference
from offramp.results.bench import Bench
from offramp.results.dynamic import MAX_DROP, Dynamic
from offramp.results.evaluation import Evaluation


def outcome(evaluation: Evaluation) -> str | None:
    """Accuracy, promise, operations and, where they were measured, times; None where no thresholds can be found.

    `As accurately`: the 95 % interval of the accuracy lost, over the test images, holds 0.
    """
    dynamic = evaluation.dynamic
    if dynamic is None:
        return None
    policy = dynamic.source or f"thresholds found for a drop of {MAX_DROP:g} points"
    if dynamic.exits[-1].images == evaluation.test.num_images:
        return f"Under {policy} no image leaves early: the last exit answers all of them."
    bench = evaluation.bench
    speed = f"; `{evaluation.run.command('bench')}` measures the time" if bench is None else _speed(bench)
    return (
        f"Under {policy} the network answers {_accuracy(dynamic, evaluation.test.num_images)} with "
        f"{100 * dynamic.share:.0f} % of the operations{speed}."
    )


def _accuracy(dynamic: Dynamic, images: int) -> str:
    centre, error = map(float, paired_difference(dynamic.lost, dynamic.gained, images))
    drop = 100 * (dynamic.lost - dynamic.gained) / images
    how = "as accurately as its last exit alone"
    if abs(centre) > Z95 * error:
        how = f"{'less' if centre > 0 else 'more'} accurately than its last exit alone"
    change = f"{'gain' if drop < 0 else 'drop'} {abs(drop):.1f} points on {images:,} test images"
    return f"{how} ({change}, {_promise(dynamic.certificate)})"


def _promise(certificate: Certificate | None) -> str:
    if certificate is None:
        return "not certified"
    promise, where = certificate.promise, " in every class" if certificate.per_class else ""
    most = f"at most {100 * promise.risk:g}"
    if promise.loss == "early-error":  # says nothing of what is lost
        most = f"at most {100 * promise.risk:g} % of early answers wrong"
    return f"certified {most}{where} at {100 * promise.confidence:g} %"


def _speed(bench: Bench) -> str:
    """Of images one at a time, if they were timed so."""
    mode = bench.modes.get("1", next(iter(bench.modes.values())))
    speed, where = mode.engine, f"on {bench.conditions}"
    fed = {"1": "one image at a time", "stream": "in a stream"}.get(mode.name, f"in batches of {mode.name}")
    if speed.low > 1:
        return f", {speed.times:.1f} times as fast {fed} {where}"
    if speed.high < 1:
        return f", but takes {1 / speed.times:.1f} times as long {fed} {where}"
    return (
        f", and takes as long as that ({speed.times:.2f} times as fast, {speed.low:.2f} to {speed.high:.2f}) {fed} "
        f"{where}"
    )
