"""The damping value against the answers, beside slow loops and another library."""

import math
import statistics

import pytest
import torch
from sklearn.metrics import roc_auc_score

from offramp.errors import UsageError
from offramp.evaluation.error_detection import error_detection


def test_it_is_what_slow_loops_and_another_library_find(make_record):
    record = make_record(K=2, S=203, N=4)
    for k, found in enumerate(error_detection(record)):
        rows = []
        for logits, target in zip(record.logits_KSC[k].double().tolist(), record.targets_S.tolist(), strict=True):
            total = sum(math.exp(value) for value in logits)
            shares = [math.exp(value) / total for value in logits]
            rows.append((shares[4], shares.index(max(shares[:4])) == target, max(shares[:4])))
        values, right, confidence = zip(*rows, strict=True)
        wrong = [not r for r in right]
        assert found.ranking == pytest.approx(roc_auc_score(wrong, values), abs=1e-9)
        assert found.confidence_ranking == pytest.approx(roc_auc_score(wrong, [-c for c in confidence]), abs=1e-6)
        for medians, chosen in ((found.right, right), (found.wrong, wrong)):
            logs = [math.log(value) for value, c in zip(values, chosen, strict=True) if c]
            assert medians == pytest.approx(math.exp(statistics.median(logs)), rel=1e-9)
        ordered = sorted(rows)
        sizes = [21, 21, 21, *[20] * 7]
        first = 0
        for size, value, top1 in zip(sizes, found.values, found.top1, strict=True):
            part = ordered[first : first + size]
            assert value == pytest.approx(math.exp(statistics.median(math.log(row[0]) for row in part)), rel=1e-9)
            assert top1 == pytest.approx(100 * sum(row[1] for row in part) / size)
            first += size


def test_a_neuron_that_knows_ranks_perfectly_and_a_silent_one_tells_nothing(make_record):
    record = make_record(K=2, S=100, N=3)
    targets_S, classes = record.targets_S, torch.arange(3)
    wrong_S = torch.arange(100) % 4 == 0
    answers_S = torch.where(wrong_S, (targets_S + 1) % 3, targets_S)
    record.logits_KSC[..., :3] = 2.0 * (answers_S[:, None] == classes)
    record.logits_KSC[0, :, 3] = torch.where(wrong_S, 0.0, -3.0)
    record.logits_KSC[1, :, 3] = -3.0
    knows, silent = error_detection(record)
    assert (knows.ranking, silent.ranking) == (1.0, 0.5)
    assert knows.wrong > knows.right
    assert (knows.top1[0], knows.top1[-1]) == (100.0, 0.0)


def test_where_all_is_right_there_is_nothing_to_tell(make_record):
    record = make_record(K=1, S=3, N=3)
    record.logits_KSC[..., :3] = 50.0 * (record.targets_S[:, None] == torch.arange(3))
    (found,) = error_detection(record)
    assert (found.wrong, found.ranking, found.confidence_ranking) == (None, None, None)
    assert found.top1 == (100.0, 100.0, 100.0)


def test_a_network_without_the_neuron_is_refused(make_record):
    with pytest.raises(UsageError, match="no damping neuron"):
        error_detection(make_record(damping=False))
