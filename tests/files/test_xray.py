"""What a record of gradients says, beside slow loops. E epochs, K exits, W images."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from offramp.errors import UsageError
from offramp.files.xray import Xray
from offramp.storage import load_tensors, save_tensors


def made_up(E: int = 4, K: int = 3, W: int = 50, *, gamma: float | None = 0.1, weighted: bool = True) -> Xray:
    """Of power-sqrt or cross-entropy, as it may be: pushes are the closed form, up to float16."""
    ce_EKW = torch.rand(E, K, W).pow(4) * 6
    true_EKW = (-ce_EKW).exp()
    gamma_EKW = None if gamma is None else torch.full_like(ce_EKW, gamma)
    return Xray(
        indices_W=torch.arange(W) * 3,
        targets_W=torch.arange(W) % 5,
        epochs_E=torch.arange(E) + 1,
        ce_EKW=ce_EKW.half(),
        push_EKW=(1 - (1 + (gamma or 0)) * true_EKW).half(),
        right_EKW=torch.rand(E, K, W) < 0.7,
        gamma_EKW=None if gamma_EKW is None else gamma_EKW.half(),
        weight_EKW=(torch.rand(E, K, W) * 2).half() if weighted else None,
        class_names=tuple("abcde"),
        split="made-up/train",
    )


def one(ce: float, push: float, weight: float | None = None) -> Xray:
    tensors = {"ce_EKW": torch.tensor([[[ce]]]), "push_EKW": torch.tensor([[[push]]])}
    weight_EKW = None if weight is None else torch.tensor([[[weight]]])
    return dataclasses.replace(made_up(1, 1, 1, gamma=None), **tensors, weight_EKW=weight_EKW)


def test_shares_are_what_a_slow_loop_counts():
    xray = made_up()
    shares_3EK = xray.shares()
    for e in range(4):
        for k in range(3):
            counts = [0, 0, 0]
            for ce, push in zip(xray.ce_EKW[e, k].tolist(), xray.push_EKW[e, k].tolist(), strict=True):
                kept = push / (1 - math.exp(-ce)) if ce else push
                counts[0 if kept >= Xray.NEEDED else 1 if kept >= 0 else 2] += 1
            assert shares_3EK[:, e, k].tolist() == pytest.approx([count / 50 for count in counts])
            assert min(counts) > 0
    assert torch.allclose(shares_3EK.sum(0), torch.ones(4, 3, dtype=torch.float64))


def test_what_is_kept_is_one_less_the_odds_of_the_true_class_times_gamma():
    """1 - gamma F/(1 - F): 0 where F is 1/(1 + gamma), Proposition 1."""
    for gamma in (0.005, 0.3):
        true = torch.tensor([0.1, 0.5, 1 / (1 + gamma), 0.999999], dtype=torch.float64)
        push = 1 - (1 + gamma) * true
        xray = dataclasses.replace(
            made_up(1, 1, 4, weighted=False), ce_EKW=-true.log()[None, None], push_EKW=push[None, None]
        )
        expected = 1 - gamma * true / (1 - true)
        torch.testing.assert_close(xray.kept()[0, 0].double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("xray", "state"),
    [
        (one(2.0, 1 - math.exp(-2.0)), 0),  # cross-entropy
        (one(1e-6, 1e-6), 0),  # still cross-entropy
        (one(0.0, 0.0), 1),  # nothing left to push
        (one(2.0, 0.0), 1),  # discarded
        (one(1.0, 0.5), 1),
        (one(1e-3, -1e-4), 2),
        (one(0.0, -0.005), 2),
        (one(2.0, 0.8, weight=-0.5), 2),  # a rule that takes back
        (one(1e-3, -1e-4, weight=-0.5), 1),
        (one(2.0, 0.8, weight=0.0), 1),
    ],
)
def test_each_kind_of_gradient_is_told(xray: Xray, state: int):
    assert xray.shares()[:, 0, 0].tolist() == [float(s == state) for s in range(3)]


def test_sources_are_what_a_slow_loop_adds_up():
    xray = made_up(gamma=0.3)
    sources = xray.sources()
    for e in range(4):
        for k in range(3):
            sums = [0.0] * 4
            for w in range(50):
                true = math.exp(-float(xray.ce_EKW[e, k, w]))
                force = float(xray.push_EKW[e, k, w]) * float(xray.weight_EKW[e, k, w])
                sums[sum(true >= band for band in (0.7, 0.8, 0.95))] += max(0.0, force)
            assert sources[:, e, k].tolist() == pytest.approx([s / sum(sums) for s in sums], abs=1e-6)


def test_where_nothing_is_pushed_up_nothing_has_a_source():
    assert one(0.0, -0.1).sources().flatten().tolist() == [0.0] * 4


def test_learned_is_the_epoch_after_which_no_answer_is_wrong():
    history = {  # by image: right or wrong in epochs 2, 3, 5, 6
        "1111": 2,
        "0111": 3,
        "1011": 5,
        "0001": 6,
        "1110": 0,
        "0000": 0,
    }
    right_EKW = torch.tensor([[int(c) for c in word] for word in history]).T[:, None].bool()
    xray = dataclasses.replace(made_up(4, 1, 6), right_EKW=right_EKW, epochs_E=torch.tensor([2, 3, 5, 6]))
    assert xray.learned()[0].tolist() == list(history.values())


@pytest.mark.parametrize("full", [True, False])
def test_a_record_comes_back_from_its_file_as_it_was(full: bool, tmp_path: Path):
    xray = made_up() if full else made_up(gamma=None, weighted=False)
    xray.save(tmp_path / "xray.safetensors")
    again = Xray.load(tmp_path / "xray.safetensors")
    for field in dataclasses.fields(Xray):
        before, after = getattr(xray, field.name), getattr(again, field.name)
        assert torch.equal(before, after) if isinstance(before, Tensor) else before == after
        assert not isinstance(before, Tensor) or before.dtype == after.dtype


def test_other_files_and_newer_ones_are_refused(tmp_path: Path):
    path = tmp_path / "xray.safetensors"
    save_tensors(path, {"weight": torch.zeros(3)})
    with pytest.raises(UsageError, match="not a record of gradients"):
        Xray.load(path)
    made_up().save(path)
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, {"xray": json.dumps({**json.loads(metadata["xray"]), "format": 2})})
    with pytest.raises(UsageError, match="newer offramp"):
        Xray.load(path)
