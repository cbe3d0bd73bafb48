"""What follows from the comparisons, in plain words: yes, no, or not resolved.

Pure functions of values: whatever is said here stands in the intervals.
"""

from collections.abc import Sequence
from itertools import groupby
from math import ceil, inf

from offramp.results.verdict.comparison import simplest
from offramp.results.verdict.values import CONFIDENCE, Answer, Conclusion, Contender, EqualTimeComparison

ENOUGH = 1000  # times as many images as there are: more than can be had


def conclude(
    comparisons: Sequence[EqualTimeComparison], rivals: Sequence[Contender], images: int, *, least_gain: float = 0.0
) -> Conclusion:
    """What follows from the comparisons.

    Args:
        least_gain: Points that early exits have to gain to be worth it.

    Returns:
        Yes, where they gain that at one time at least; no, where they do at none; else open.
    """
    answers = {comparison.engine: comparison.answer_for(least_gain) for comparison in comparisons}
    details = [*_ranges(comparisons, answers, least_gain), *_about_missing(comparisons)]
    won = [comparison for comparison in comparisons if answers[comparison.engine] == "yes"]
    if won:
        best = max(won, key=lambda comparison: comparison.low)
        headline = (
            f"Yes: at {time(best.ms)} early exits are {best.gain:.2f} points more accurate than the best smaller "
            f"network of that time ({interval(best)})."
        )
        return Conclusion("yes", headline, (_against(best), *details))
    if all(answer == "no" for answer in answers.values()):
        rival = simplest(rivals)
        headline = f"No: {_instead(rival, rivals)} and be done: {rival.top1:.2f} % at {time(rival.ms)}."
        return Conclusion("no", headline, (_most_gained(comparisons), *details))
    return Conclusion("open", _unresolved(comparisons, answers, images, least_gain), tuple(details))


def time(ms: float) -> str:
    """`1.32 ms per image`."""
    return f"{ms:.3g} ms per image"


def interval(comparison: EqualTimeComparison) -> str:
    """`95 % interval 0.70 to 1.70`."""
    return f"{100 * CONFIDENCE:.0f} % interval {comparison.low:.2f} to {comparison.high:.2f}"


def against(comparison: EqualTimeComparison) -> str:
    """Who the rival is."""
    if len(comparison.rivals) == 1:
        return comparison.rivals[0]
    first, second = comparison.rivals
    return f"{first} for {1 - comparison.share:.0%} of the images and {second} for {comparison.share:.0%}"


def _against(comparison: EqualTimeComparison) -> str:
    return f"That network is {against(comparison)}: {comparison.rival_top1:.2f} %, early exits {comparison.top1:.2f} %."


def _instead(rival: Contender, rivals: Sequence[Contender]) -> str:
    deepest = max(each.exit or 0 for each in rivals)
    if rival.kind == "alone":
        return f"train the network up to exit {rival.exit} with that exit alone"
    if rival.exit == deepest:
        return "run the network straight to its last exit"
    return f"cut the network at exit {rival.exit}"


def _most_gained(comparisons: Sequence[EqualTimeComparison]) -> str:
    asking = [comparison for comparison in comparisons if not comparison.straight]
    if not asking:
        return "The engine runs straight on under every policy: leaving early saves no time on this machine."
    best = max(asking, key=lambda comparison: comparison.high)
    return f"The most that early exits may gain is {best.high:.2f} points, at {time(best.ms)} ({interval(best)})."


def _ranges(comparisons: Sequence[EqualTimeComparison], answers: dict[str, Answer], least_gain: float) -> list[str]:
    """At which times which answer holds, neighbours together."""
    more = f"more than {least_gain:g} points" if least_gain else "something"
    phrases = {"yes": f"Early exits gain {more}", "no": f"They gain {'no ' + more if least_gain else 'nothing'}"}
    phrases["open"] = "Not resolved"
    times_of: dict[Answer, list[str]] = {}
    by_time = sorted(comparisons, key=lambda comparison: comparison.ms)
    for answer, group in groupby(by_time, key=lambda comparison: answers[comparison.engine]):
        times = [comparison.ms for comparison in group]
        times_of.setdefault(answer, []).append(
            f"{times[0]:.3g}" if len(times) == 1 else f"from {times[0]:.3g} to {times[-1]:.3g}"
        )
    if times_of.keys() == {"open"}:
        return []  # the headline says it
    order: tuple[Answer, ...] = ("yes", "no", "open")
    return [f"{phrases[answer]}: {', '.join(times_of[answer])} ms per image." for answer in order if answer in times_of]


def _about_missing(comparisons: Sequence[EqualTimeComparison]) -> list[str]:
    missing = sorted({exit for comparison in comparisons for exit in comparison.missing})
    if not missing:
        return []
    exits = f"exit{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
    return [f"The smaller networks trained with {exits} alone are missing, so a yes is not given next to their times."]


def _unresolved(
    comparisons: Sequence[EqualTimeComparison], answers: dict[str, Answer], images: int, least_gain: float
) -> str:
    unknown = [comparison for comparison in comparisons if answers[comparison.engine] == "open"]
    covering = [comparison for comparison in unknown if comparison.low <= least_gain]
    if not covering:
        best = max(unknown, key=lambda comparison: comparison.low)
        headline = (
            f"Not resolved: at {time(best.ms)} early exits are {best.gain:.2f} points more accurate than the best of "
            f"the smaller networks there are ({interval(best)}), but "
        )
        if best.missing:
            return f"{headline}the networks trained for that time alone are missing."
        return f"{headline}on the test images another is best, and it may be as accurate; more images, or rounds."
    best = max(covering, key=lambda comparison: comparison.gain)
    headline = (
        f"Not resolved: at {time(best.ms)} early exits are {_by(best.gain)} the best smaller network of that time, and "
        f"the interval of the gain covers {least_gain:g} ({interval(best)}); more test images or rounds."
    )
    distance, half = abs(best.gain - least_gain), (best.high - best.low) / 2
    times = (half / distance) ** 2 if distance else inf
    if 1 < times <= ENOUGH:
        headline += f" A difference of that size needs about {_rounded(times * images):,} test images."
    return headline


def _by(gain: float) -> str:
    size = f"{abs(gain):.2f}"
    if float(size) == 0:
        return "as accurate as"
    return f"{size} points {'more' if gain > 0 else 'less'} accurate than"


def _rounded(images: float) -> int:
    """To two digits, up."""
    step: int = 10 ** max(0, len(str(int(images))) - 2)
    return ceil(images / step) * step
