import json
from dataclasses import replace

import pytest
import torch

from offramp.costs import Cost, Count
from offramp.evaluation import Certificate, Promise, Record, budgeted, curve, policy_for, search_thresholds
from offramp.policy import EVERYBODY, NOBODY, SOFTMAX, Measure, Policy
from offramp.results.dynamic import BUDGETS, MAX_DROP, SHOWN, dynamic, exit_uses, leaves_from

COUNTS = tuple(Count(operations, 0, 0) for operations in (100, 250, 700))
COST = Cost(COUNTS, COUNTS, COUNTS, COUNTS, (1, 4, 4))
POLICY = Policy((0.6, 0.5, EVERYBODY), network="w")


def make_record(split: str, S: int = 300, N: int = 5, *, missing: bool = False) -> Record:
    """Exits that know more the deeper they are; with the damping neuron; indices that are no positions."""
    torch.manual_seed(len(split) + S)
    targets_S = torch.randint(0, N - missing, (S,))
    logits_KSC = torch.randn(3, S, N + 1)
    logits_KSC[:, torch.arange(S), targets_S] += torch.tensor([1.0, 1.5, 2.5])[:, None]
    return Record(
        logits_KSC=logits_KSC,
        targets_S=targets_S,
        indices_S=torch.arange(S) + 1000,
        class_names=tuple(f"class {n}" for n in range(N)),
        split=split,
        fingerprint=split,
        weights="w",
        total=S,
        made_on="cpu",
    )


SEARCH, TEST = make_record("made-up/search"), make_record("made-up/test", 400)


def found(path, test=TEST, measure=SOFTMAX):
    return dynamic(SEARCH, test, COST, path, measure)


@pytest.fixture
def kept(tmp_path):
    POLICY.save(tmp_path / "policy.json")
    return found(tmp_path / "policy.json")


def test_curves_are_the_published_one_and_searched_thresholds_over_the_whole_range(tmp_path):
    here = found(tmp_path / "none.json")
    assert here.published == budgeted(SEARCH, TEST, COST)
    assert len(here.published.points) == 39
    budgets = [100 + 600 * step / BUDGETS for step in range(1, BUDGETS + 1)]
    assert here.searched == curve(search_thresholds(SEARCH, COST, budgets), TEST, COST)


def test_without_a_policy_of_the_runs_own_one_is_found_on_search(tmp_path):
    here = found(tmp_path / "none.json")
    assert here.policy == policy_for(SEARCH, COST, max_drop=MAX_DROP)
    assert here.source is here.note is here.certificate is None
    assert here.policy.found["fingerprint"] == SEARCH.fingerprint


def test_what_is_found_here_reads_classes_as_asked(tmp_path):
    here = found(tmp_path / "none.json", measure=Measure(renormalise=True))
    points = [*here.published.points, *here.searched.points, here.point]
    assert all(point.policy.measure.renormalise for point in points)


def test_the_runs_own_policy_is_taken_with_its_certificate(tmp_path):
    about = (400, 400, 3, 0, 50, "made-up/certify", "c", "w")
    certificate = Certificate(Promise(), False, "method", "bound", *about)
    policy = replace(POLICY, found={"certificate": certificate.to_json()})
    policy.save(tmp_path / "policy.json")
    here = found(tmp_path / "policy.json")
    assert here.policy == policy
    assert here.certificate == certificate
    assert (here.source, here.note) == ("policy.json", None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (replace(POLICY, network="another"), "weights another, not w"),
        (Policy((0.5, EVERYBODY)), "for 2 exits"),
        (Policy((0.5, EVERYBODY), Measure(temperatures=(1.0, 2.0))), "2 temperatures"),
        (replace(POLICY, found={"certificate": {"promise": {}}}), "certificate is damaged"),
        (replace(POLICY, found={"certificate": 3}), "certificate is damaged"),
        (replace(POLICY, found={"times": [1.0, 2.0]}), "2 times for 3 exits"),
        (replace(POLICY, found={"times": 5}), "its origin is damaged"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
    ],
)
def test_a_policy_that_cannot_be_used_is_left_aside_and_that_is_said(tmp_path, content, said):
    path = tmp_path / "policy.json"
    path.write_text(content) if isinstance(content, str) else content.save(path)
    here = found(path)
    assert here.note.startswith("policy.json was left aside.")
    assert said in here.note
    assert here.source is here.certificate is None
    assert here.policy == policy_for(SEARCH, COST, max_drop=MAX_DROP)


def one_by_one(policy, record):
    """Exit taken (from 0) and answer of each image, an image and an exit at a time, in double precision."""
    rows = []
    for s in range(record.num_images):
        for k, threshold in enumerate(policy.thresholds):
            probs_N = record.logits_KSC[k, s].double().softmax(-1)[: record.num_classes]
            if probs_N.max() >= threshold:
                rows.append((k, int(probs_N.argmax())))
                break
    return rows


def test_exits_and_classes_are_those_of_going_through_the_images_one_by_one(kept):
    rows = one_by_one(POLICY, TEST)
    targets, last = TEST.targets_S.tolist(), TEST.logits_KSC[-1, :, :5].argmax(-1).tolist()
    for k, use in enumerate(kept.exits):
        here = [s for s, (exit, _) in enumerate(rows) if exit == k]
        assert len(here) > 5
        assert use.images == len(here)
        assert use.share == pytest.approx(len(here) / 400)
        assert use.top1 == pytest.approx(100 * sum(rows[s][1] == targets[s] for s in here) / len(here))
        assert use.full_top1 == pytest.approx(100 * sum(last[s] == targets[s] for s in here) / len(here))
        assert use.threshold == POLICY.thresholds[k]
    for label, row in enumerate(kept.classes):
        here = [s for s in range(400) if targets[s] == label]
        assert (row.name, row.images) == (f"class {label}", len(here))
        assert row.lost == sum(rows[s][1] != label and last[s] == label for s in here)
        assert row.gained == sum(rows[s][1] == label and last[s] != label for s in here)
        assert row.top1 - row.full_top1 == pytest.approx(row.difference)
        assert row.shares == pytest.approx([sum(rows[s][0] == k for s in here) / len(here) for k in range(3)])
    assert sum(row.lost for row in kept.classes) > 0
    assert len({row.lost - row.gained for row in kept.classes}) > 1


def test_overall_figures_agree_with_the_rows(kept):
    point = kept.point
    assert point == curve([POLICY], TEST, COST).points[0]
    assert sum(use.images for use in kept.exits) == TEST.num_images
    assert sum(use.share * use.top1 for use in kept.exits) == pytest.approx(point.accuracy)
    assert sum(use.share * use.full_top1 for use in kept.exits) == pytest.approx(kept.full_top1)
    spent = sum(use.share * count.operations for use, count in zip(kept.exits, COUNTS, strict=True))
    assert spent == pytest.approx(point.operations)
    assert kept.share == pytest.approx(spent / 700)
    assert point.accuracy - kept.full_top1 == pytest.approx(100 * (kept.gained - kept.lost) / TEST.num_images)


def test_expected_milliseconds_are_those_of_the_times_the_policy_was_found_for(tmp_path, kept):
    assert kept.milliseconds is None
    times = [0.5, 0.7, 2.0]
    policy = policy_for(SEARCH, COST, latency=1.0, times=times)
    policy.save(tmp_path / "timed.json")
    here = found(tmp_path / "timed.json")
    exits = [k for k, _ in one_by_one(policy, TEST)]
    assert here.milliseconds == pytest.approx(sum(times[k] for k in exits) / TEST.num_images)
    assert here.to_json()["milliseconds"] == here.milliseconds


def test_an_exit_nobody_takes_and_a_class_without_images_have_no_accuracy(tmp_path):
    Policy((NOBODY, 0.5, EVERYBODY)).save(tmp_path / "policy.json")
    here = found(tmp_path / "policy.json", make_record("made-up/test", missing=True))
    assert (here.exits[0].images, here.exits[0].top1, here.exits[0].full_top1) == (0, None, None)
    assert here.picked[0] == ()
    empty = here.classes[-1]
    assert (empty.images, empty.top1, empty.full_top1, empty.difference, empty.shares) == (0, None, None, None, ())


def test_where_everybody_leaves_late_nothing_is_lost_or_gained(tmp_path):
    Policy((NOBODY, NOBODY, EVERYBODY)).save(tmp_path / "policy.json")
    here = found(tmp_path / "policy.json")
    assert (here.lost, here.gained, here.share) == (0, 0, 1.0)
    assert here.point.accuracy == here.full_top1


def test_the_surest_that_leave_early_and_the_least_sure_that_stay_are_picked(kept):
    confidence_KS, labels_KS = POLICY.measure.over(TEST.logits_KSC, 5)
    rows = one_by_one(POLICY, TEST)
    for k, picked in enumerate(kept.picked):
        here = [s for s, (exit, _) in enumerate(rows) if exit == k]
        key = {s: -confidence_KS[k, s].item() if k < 2 else confidence_KS[:2, s].max().item() for s in here}
        assert [one.index - 1000 for one in picked] == sorted(here, key=key.__getitem__)[:SHOWN]
        for one in picked:
            s = one.index - 1000
            assert (one.target, one.answer) == (int(TEST.targets_S[s]), int(labels_KS[k, s]))
            assert one.confidence == confidence_KS[k, s].item()
    assert [len(picked) for picked in kept.picked] == [SHOWN] * 3


def test_of_equally_sure_images_the_first_are_picked(tmp_path):
    logits_KSC = torch.zeros(3, 30, 6)
    logits_KSC[:, :, 2] = 1.0
    test = replace(make_record("made-up/test", 30), logits_KSC=logits_KSC)
    Policy((0.0, 0.0, EVERYBODY)).save(tmp_path / "policy.json")
    assert [one.index for one in found(tmp_path / "policy.json", test).picked[0]] == list(range(1000, 1000 + SHOWN))


def test_json_holds_all_of_it(kept):
    values = json.loads(json.dumps(kept.to_json(), allow_nan=False))
    assert [point["p"] for point in values["published"]] == [j / 20 for j in range(1, 40)]
    assert [point["budget"] for point in values["searched"]][-1] == 700
    for points, figures in ((values["published"], kept.published), (values["searched"], kept.searched)):
        assert [point["accuracy"] for point in points] == [point.accuracy for point in figures.points]
        assert [point["shares"] for point in points] == [list(point.shares) for point in figures.points]
        assert [point["thresholds"] for point in points] == [list(point.policy.thresholds) for point in figures.points]
    assert values["policy"]["thresholds"] == list(POLICY.thresholds)
    assert values["policy_file"] == "policy.json"
    assert (values["accuracy"], values["full_accuracy"]) == (kept.point.accuracy, kept.full_top1)
    assert values["operations_share"] == kept.share
    assert [row["exit"] for row in values["exits"]] == [1, 2, 3]
    assert [row["difference"] for row in values["classes"]] == [row.difference for row in kept.classes]


def test_uses_of_exits_by_hand():
    exits_S = torch.tensor([0, 0, 1, 0])
    right_S, full_S = torch.tensor([True, False, True, False]), torch.tensor([True, True, False, False])
    first, second = exit_uses([0.7, EVERYBODY], exits_S, right_S, full_S)
    assert (first.threshold, first.images, first.share) == (0.7, 3, 0.75)
    assert (first.top1, first.full_top1) == (pytest.approx(100 / 3), pytest.approx(200 / 3))
    assert (second.top1, second.full_top1) == (100.0, 0.0)


@pytest.mark.parametrize(
    ("threshold", "shown"),
    [(NOBODY, "none"), (EVERYBODY, "all"), (0.5, "0.5"), (0.99996412, "0.999964"), (-0.0123456789, "-0.0123457")],
)
def test_thresholds_are_short_and_not_rounded_up_to_certainty(threshold, shown):
    assert leaves_from(threshold) == shown
