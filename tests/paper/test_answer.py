"""The answer of a league or study: what is said of what the runs gave."""

import re

import numpy as np
import pytest
from tests.paper.figures import figures_of

from offramp.paper import answer, experiments, statistics
from offramp.paper.identity import run_name
from offramp.paper.page import write
from offramp.paper.results import Results
from offramp.paper.scales import POCKET


@pytest.fixture
def league():
    (found,) = experiments(["league"], POCKET)
    return found


def of_gains(gains: dict[str, list[float]], **more: dict[str, float]) -> Results:
    """Of as many seeds as there are gains over cross-entropy, the same at every exit."""
    base = [86.0, 86.4, 85.8, 86.1]
    rows = {"cross-entropy": [0.0] * 4, **gains}
    return Results(
        {
            ("league", label): {
                seed: figures_of(
                    (base[seed] + gain,) * 7, images=10_000, **{k: (v,) * 7 for k, v in more.get(label, {}).items()}
                )
                for seed, gain in enumerate(of)
            }
            for label, of in rows.items()
        }
    )


def test_what_is_told_apart_is_named_with_its_interval_and_one_seed_is_no_part_of_it(league) -> None:
    results = of_gains(
        {
            "damping": [0.3, -0.4, 0.2, -0.3],
            "power-sqrt": [1.0, 1.1, 1.2, 1.1],
            "WPN": [-2.0, -2.2, -2.1],
            "DFS": [9.0],
        }
    )
    first, *_ = answer.sentences(league, results)
    assert first.startswith("Measured on fashion-mnist: of 3 methods, 3 to 4 seeds each, ")
    assert "better than cross-entropy: power-sqrt +1.10 [" in first
    assert "Worse: WPN -2.10 [" in first
    assert "No significant difference: damping -0.05 [" in first
    assert "DFS" not in first
    assert set(answer.p_values(league, results)) == {"damping", "power-sqrt", "WPN"}


def test_where_none_is_told_apart_the_furthest_is_named(league) -> None:
    results = of_gains({"damping": [0.3, -0.4, 0.2, -0.3], "WPN": [0.9, -0.2, 0.8, -0.3]})
    first, *_ = answer.sentences(league, results)
    assert "of 2 methods, 4 seeds each, none differs significantly from cross-entropy" in first
    assert "furthest is WPN, +0.30 [" in first
    assert "nothing can be said yet" in answer.sentences(league, of_gains({"damping": [0.3]}))[0]


def test_whether_learned_images_push_less_is_said_where_it_was_recorded(league) -> None:
    gains = {"damping": [0.3, -0.4, 0.2, -0.3], "WPN": [0.9, -0.2, 0.8, -0.3]}
    recorded = {"cross-entropy": {"learned": 0.4}, "damping": {"learned": 0.002}}
    (said,) = [s for s in answer.sentences(league, of_gains(gains, **recorded)) if "mechanism" in s]
    assert said.endswith("cross-entropy 40.0 %; damping 0.2 %.")
    assert not [s for s in answer.sentences(league, of_gains(gains)) if "mechanism" in s]


def test_the_page_begins_with_the_answer(study, manifest) -> None:
    made = study(POCKET, "league", seeds=3, only=("cross-entropy", "power-sqrt"))
    for seed in range(3):
        for label, gain in (("cross-entropy", 0), ("power-sqrt", 5)):
            run = made.experiments[0].row(label).with_seed(seed)
            manifest(run, [70.0 + seed + gain + gain * seed / 100] * 7).save(
                made.out / "manifests" / f"{run_name(run)}.json"
            )
    html, text, *_ = write(made)
    for page in (html.read_text(), text.read_text()):
        section = re.split(r"league: All methods", page)[1]
        assert section.index("better than cross-entropy: power-sqrt +5.05") < section.index("Every method in Table 1")
        assert "p of the mean, Holm" in page


@pytest.mark.parametrize(("seeds", "comparisons"), [(4, 1), (12, 5)])
def test_a_difference_that_could_be_found_is_found_in_four_of_five_studies(seeds: int, comparisons: int) -> None:
    """Beside it stand differences of 0; they spread by 0.45 points, as on Fashion-MNIST."""
    generator, found = np.random.default_rng(0), 0
    some = np.arange(float(seeds))
    true = statistics.detectable([*(0.45 * some / some.std(ddof=1))], comparisons)
    for _ in range(1000):
        values = generator.normal([true] + [0.0] * (comparisons - 1), 0.45, (seeds, comparisons)).T
        found += statistics.holm([statistics.p_value(of) for of in values])[0] < 0.05
    assert 0.77 < found / 1000 < 0.84
