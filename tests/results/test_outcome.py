"""The sentence says what was measured and promised, and nothing better."""

from types import SimpleNamespace
from typing import Any

import pytest
from tests.results import made_up

from offramp.evaluation import Certificate, Promise
from offramp.policy import EVERYBODY, Policy
from offramp.results.bench import Speed
from offramp.results.outcome import outcome

TWO = Policy((0.9, EVERYBODY))


def told(
    *,
    lost: int = 3,
    gained: int = 2,
    loss: str | None = "regret",
    per_class: bool = False,
    speed: Any = (1.9, 1.8, 2.0),
    feed: str = "1",
) -> str:
    """Of 1,000 images, 900 of which leave early."""
    promise = None if loss is None else Promise(0.01, 0.95, loss)  # type: ignore[arg-type]
    certificate = None if promise is None else Certificate(promise, per_class, "", "", 9, 9, 0, 0, 9, "s", "f", "w")
    bench = None if speed is None else made_up.bench(TWO, "", made_up.mode(feed, (0.2, 1.0), engine=Speed(0.5, *speed)))
    dynamic = SimpleNamespace(
        source="policy.json",
        certificate=certificate,
        lost=lost,
        gained=gained,
        share=0.412,
        exits=[SimpleNamespace(images=100)],
    )
    run = SimpleNamespace(command=lambda name: f"offramp {name} RUN")
    evaluation = SimpleNamespace(dynamic=dynamic, bench=bench, run=run, test=SimpleNamespace(num_images=1000))
    sentence = outcome(evaluation)  # type: ignore[arg-type]
    assert sentence is not None
    return sentence


def test_all_of_it_in_one_sentence() -> None:
    assert told() == (
        "Under policy.json the network answers as accurately as its last exit alone (drop 0.1 points on 1,000 test "
        "images, certified at most 1 at 95 %) with 41 % of the operations, 1.9 times as fast one image at a time on "
        "a box, 2 threads."
    )


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"lost": 40}, "less accurately than its last exit alone (drop 3.8 points"),
        ({"gained": 40}, "more accurately than its last exit alone (gain 3.7 points"),
        ({"loss": None}, "not certified)"),
        ({"loss": "drop", "per_class": True}, "certified at most 1 in every class at 95 %)"),
        ({"loss": "early-error"}, "certified at most 1 % of early answers wrong at 95 %)"),
        ({"speed": (0.5, 0.45, 0.6)}, "operations, but takes 2.0 times as long one image at a time"),
        ({"speed": (1.0, 0.9, 1.1)}, "operations, and takes as long as that (1.00 times as fast, 0.90 to 1.10)"),
        ({"speed": None}, "with 41 % of the operations; `offramp bench RUN` measures the time."),
        ({"feed": "32"}, "1.9 times as fast in batches of 32 on a box"),
        ({"feed": "stream"}, "1.9 times as fast in a stream on a box"),
    ],
)
def test_what_is_not_so_good_is_said(case: dict[str, Any], words: str) -> None:
    assert words in told(**case)


def test_nothing_is_claimed_where_no_image_leaves_early_or_thresholds_cannot_be_found() -> None:
    dynamic = SimpleNamespace(source="policy.json", exits=[SimpleNamespace(images=1000)])
    evaluation = SimpleNamespace(dynamic=dynamic, test=SimpleNamespace(num_images=1000))
    assert "no image leaves early" in str(outcome(evaluation))  # type: ignore[arg-type]
    assert outcome(SimpleNamespace(dynamic=None)) is None  # type: ignore[arg-type]
