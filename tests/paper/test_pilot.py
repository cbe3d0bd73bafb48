"""The pilot decides on each method's number, by one rule; the study goes by it."""

import dataclasses
import json

import pytest

from offramp import objectives, rules
from offramp.errors import OfframpError, UsageError
from offramp.paper import pilot
from offramp.paper.identity import run_name
from offramp.paper.page import write
from offramp.paper.scales import PAIRS, PAIRS_FEW, PAIRS_SHORT
from offramp.paper.study import Study

FIRST_SIX = ("cross-entropy", "damping", "damping, λ/√K", "power-sqrt", "dynamic (R1)", "dynamic, tanh (R3)")


@pytest.fixture
def piloted(tmp_path, manifest):
    """The pilot at a scale, done with two seeds: of each method the second candidate is best, if only on average."""

    def make(scale=PAIRS_SHORT, best=1):
        made = Study(names=("pilot",), scale=scale, seeds=(100, 101), out=tmp_path)
        for row in made.experiments[0].rows:
            family = next(of for of in pilot.CANDIDATES.values() if row.label in [each.label for each in of])
            place = [each.label for each in family].index(row.label)
            for seed, search in ((100, 60.0 + (place == 0)), (101, 60.0 + 2 * (place == best))):
                run = row.with_seed(seed)
                one = manifest(run, [50.0] * 7, search=[search] * 7)
                one.save(tmp_path / "manifests" / f"{run_name(run)}.json")
        return made

    return make


def test_the_candidate_that_is_best_on_search_is_chosen(piloted) -> None:
    decision = json.loads(piloted().decide().read_text())
    assert decision["seeds"] == [100, 101]
    for family, candidates in pilot.CANDIDATES.items():
        assert decision["chosen"][family] == candidates[min(1, len(candidates) - 1)].label
    assert decision["search_top1"]["damping"] == {"damping 0.005": 60.5, "damping 0.025": 61.0, "damping 0.075": 60.0}


def test_the_study_trains_what_was_chosen(piloted, tmp_path) -> None:
    piloted().decide()
    study = Study(names=("study",), scale=PAIRS, seeds=(0,), out=tmp_path)
    rows = {row.aliases[0]: row.run for row in study.experiments[0].rows}
    assert rows["power-sqrt"].objective.args == {"strength": 0.025}
    assert rows["dynamic, tanh (R3)"].objective.args == {"strength": 0.025, "alpha": 0.8, "normalisation": "tanh"}
    assert rows["label smoothing"].objective.args == {"smoothing": 0.1}
    rival = rows["best rival"]  # the second candidate: WPN with its own recipe
    assert (rival.rule.name, rival.training.lr, rival.data.batch_size) == ("wpn", 0.2, 256)
    for run in rows.values():
        assert run.data.source.args["limit"] - run.data.holdout == PAIRS["cifar100"].images
        assert run.training.xray
    some = dataclasses.replace(study, only=FIRST_SIX)
    assert [row.aliases[0] for row in some.experiments[0].rows] == list(FIRST_SIX)


def test_other_budgets_go_by_the_same_pilot_and_nothing_else_by_none(piloted, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"needs a pilot.* pilot --scale pairs-short --first-seed 100"):
        Study(names=("study",), scale=PAIRS_FEW, seeds=(0,), out=tmp_path)
    piloted().decide()
    few = Study(names=("study",), scale=PAIRS_FEW, seeds=(0,), out=tmp_path)
    assert few.experiments[0].rows[1].run.objective.args == {"strength": 0.025}
    piloted(PAIRS_FEW, best=2).decide()  # one of its own goes before
    few = Study(names=("study",), scale=PAIRS_FEW, seeds=(0,), out=tmp_path)
    assert few.experiments[0].rows[1].run.objective.args == {"strength": 0.075}


def test_a_decision_made_elsewhere_is_found_where_manifests_are(piloted, tmp_path) -> None:
    """As in docs/results, which has its manifests in a folder below."""
    piloted().decide()
    study = Study(names=("study",), scale=PAIRS, seeds=(0,), out=tmp_path / "another", known=(tmp_path,))
    assert study.experiments[0].rows[1].run.objective.args == {"strength": 0.025}


def test_what_was_decided_stands(piloted, tmp_path) -> None:
    first = piloted().decide().read_text()
    assert piloted(best=2).decide().read_text() == first


def test_nothing_is_decided_before_all_of_the_pilot_is_done(piloted, tmp_path) -> None:
    made = piloted()
    next(iter((tmp_path / "manifests").glob("*cgt*"))).unlink()
    assert made.decide() is None
    assert dataclasses.replace(made, only=("cross-entropy",)).decide() is None


@pytest.mark.parametrize(
    ("old", "new"),
    [('"damping": "damping 0.025"', '"damping": "damping 7"'), ('"chosen"', '"chosn"'), ('"damping 0.025",', "3,")],
)
def test_a_damaged_decision_is_refused(piloted, tmp_path, old, new) -> None:
    path = piloted().decide()
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(OfframpError, match=r"pilot-pairs-short\.json "):
        Study(names=("study",), scale=PAIRS, seeds=(0,), out=tmp_path)


def test_candidates_can_be_built_and_have_labels_of_their_own() -> None:
    candidates = [each for of in pilot.CANDIDATES.values() for each in of]
    assert len({each.label for each in candidates}) == len(candidates)
    for each in candidates:
        objectives.build(each.objective(PAIRS["cifar100"]))
        rules.build(each.rule(PAIRS["cifar100"]))


def test_the_page_of_a_pilot_says_what_is_chosen_by_how_much_and_nothing_of_test(piloted) -> None:
    made = piloted()
    text = write(made)[1].read_text()
    line = next(line for line in text.splitlines() if line.startswith("| damping |"))
    assert "| damping 0.025 |" in line
    assert "61.00 ±1.41" in line
    assert "+0.50 [" in line
    assert "over damping 0.005" in line
    assert {"50.00", "**Accuracy.**"}.isdisjoint(text.split())
    some = dataclasses.replace(made, only=("damping 0.005", "damping 0.075"))
    text = write(some)[1].read_text()
    line = next(line for line in text.splitlines() if line.startswith("| damping |"))
    assert "| damping 0.005 |" in line
    assert "| 1 not run |" in line
    assert "| power-sqrt |" not in text


def test_pages_show_p_values_calibration_and_gradients(piloted, tmp_path, manifest) -> None:
    made = piloted()
    made.decide()
    study = Study(names=("study",), scale=PAIRS, seeds=(0, 1, 2), out=tmp_path)
    for number, row in enumerate(study.experiments[0].rows):
        for seed in study.seeds:
            run, lead = row.with_seed(seed), 3.0 * (number == 1)
            top1 = [50 + lead + 0.1 * (seed % 2) * number + k for k in range(7)]
            one = manifest(run, top1, xray={"learned": [0.25] * 7, "damped": [0.5] * 7, "reversed": [0.125] * 7})
            one.save(tmp_path / "manifests" / f"{run_name(run)}.json")
    text = write(study)[1].read_text()
    assert "Measured on fashion-pairs." in text
    assert "Not CIFAR-100" in text
    assert "**Calibration error (ECE) on test.**" in text
    assert "0.250 ±0.000" in text
    line = next(line for line in text.splitlines() if line.startswith("| [damping 0.025]"))
    assert "| 0.00" in line  # p, corrected
