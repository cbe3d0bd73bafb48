"""A policy on recorded logits gives what stepping through the exits gives, row by row."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from offramp.errors import OfframpError, UsageError
from offramp.policy import EVERYBODY, NOBODY, Measure, Policy

K, S, N = 4, 203, 7
NAMES = ["softmax", "margin", "entropy", "patience"]
MEASURES = [
    *(Measure(name) for name in NAMES),
    Measure("softmax", renormalise=True),
    Measure("margin", renormalise=True, temperatures=(0.5, 1.0, 2.0, 3.0)),
    Measure("entropy", temperatures=(0.5, 1.0, 2.0, 3.0)),
]


def logits(damping: bool = True) -> Tensor:
    return 3 * torch.randn(K, S, N + damping)


def middle(measure: Measure, logits_KSC: Tensor) -> Policy:
    """Thresholds at the median of each exit, so that images leave everywhere (with patience, but at the first)."""
    if measure.name == "patience":
        return Policy((NOBODY, 1.0, 1.0, EVERYBODY), measure)
    confidence_KS, _ = measure.over(logits_KSC, N)
    return Policy((*confidence_KS[:-1].quantile(0.5, dim=1).tolist(), EVERYBODY), measure)


def stepped(policy: Policy, logits_KSC: Tensor, batch: int) -> tuple[list[int], list[int], list[float]]:
    """What an engine does: exit by exit on the rows that are left, dropping those that leave, with their state."""
    exits, labels, sure = [-1] * S, [-1] * S, [math.nan] * S
    for rows in torch.arange(S).split(batch):
        state: tuple[Tensor, ...] = ()
        for k in range(K):
            log_probs = policy.log_probs(k, logits_KSC[k, rows], N)
            confidence, _ = policy.measure.confidence(log_probs, state)
            mask, state = policy.leave(k, log_probs, state)
            for row, label, value in zip(
                rows[mask].tolist(), log_probs.argmax(-1)[mask].tolist(), confidence[mask].tolist(), strict=True
            ):
                exits[row], labels[row], sure[row] = k, label, value
            rows, state = rows[~mask], tuple(tensor[~mask] for tensor in state)
    return exits, labels, sure


@pytest.mark.parametrize("measure", MEASURES, ids=str)
@pytest.mark.parametrize("damping", [True, False])
def test_choosing_on_records_equals_stepping_through_the_exits(measure: Measure, damping: bool) -> None:
    logits_KSC = logits(damping)
    policy = middle(measure, logits_KSC)
    choice = policy.choose(logits_KSC, N)
    assert choice.exits_S.unique().tolist() == list(range(measure.name == "patience", K))
    for batch in (1, 32, S):
        exits, labels, sure = stepped(policy, logits_KSC, batch)
        assert choice.exits_S.tolist() == exits
        assert choice.labels_S.tolist() == labels
        assert choice.confidence_S.tolist() == sure  # to the last bit


def slow_confidence(measure: Measure, logits_KC: Tensor) -> list[float]:
    """One image, every exit, in Python's own floating point."""
    values: list[float] = []
    answers: list[int] = []
    for k, row in enumerate(logits_KC.double().tolist()):
        row = [value / (measure.temperatures[k] if measure.temperatures else 1.0) for value in row]
        total = sum(math.exp(value) for value in (row[:N] if measure.renormalise else row))
        probs = [math.exp(value) / total for value in row[:N]]
        first, second = sorted(probs, reverse=True)[:2]
        answers.append(probs.index(first))
        agree = 0
        while agree < k and answers[k - agree - 1] == answers[k]:
            agree += 1
        mass = sum(probs)
        entropy = mass * sum(-p / mass * math.log(p / mass) for p in probs) + (1 - mass) * math.log(N)
        values.append(
            {
                "softmax": first,
                "margin": first - second,
                "entropy": -entropy,
                "patience": float(agree),
            }[measure.name]
        )
    return values


@pytest.mark.parametrize("measure", MEASURES, ids=str)
@pytest.mark.parametrize("damping", [True, False])
def test_confidences_equal_a_slow_loop(measure: Measure, damping: bool) -> None:
    logits_KSC = logits(damping)
    confidence_KS, labels_KS = measure.over(logits_KSC, N)
    for s in range(S):
        assert confidence_KS[:, s].tolist() == pytest.approx(slow_confidence(measure, logits_KSC[:, s]), abs=1e-6)
    assert torch.equal(labels_KS, logits_KSC[..., :N].argmax(-1))


@pytest.mark.parametrize("name", ["softmax", "margin", "entropy"])
def test_the_damping_neuron_makes_unsure_unless_renormalised(name: str) -> None:
    """A9: the neuron's mass is a "not sure"; an image given wholly to it is as unsure as can be."""
    shy = torch.tensor([[5.0, 0.0, 0.0, 0.0]])
    bold = torch.tensor([[5.0, 0.0, 0.0, 30.0]])
    kept, renormalised = Measure(name), Measure(name, renormalise=True)
    confidence = [kept.confidence(kept.log_probs(0, x, 3))[0].item() for x in (shy, bold)]
    assert confidence[0] > confidence[1]
    assert confidence[1] == pytest.approx(-math.log(3) if name == "entropy" else 0.0, abs=1e-6)
    same = [renormalised.confidence(renormalised.log_probs(0, x, 3))[0].item() for x in (shy, bold)]
    assert same[0] == same[1] > confidence[0]


def test_entropy_puts_the_certain_first() -> None:
    measure = Measure("entropy")
    certain, even = torch.tensor([[1e4, 0.0, 0.0]]), torch.zeros(1, 3)
    values = [measure.confidence(measure.log_probs(0, x, 3))[0].item() for x in (certain, even)]
    assert values == pytest.approx([0.0, -math.log(3)], abs=1e-6)


def test_patience_counts_agreements_in_a_row() -> None:
    answers = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 1, 1], [0, 1, 0]])
    confidence_KS, _ = Measure("patience").over(torch.nn.functional.one_hot(answers, 2).float(), 2)
    assert confidence_KS.tolist() == [[0, 0, 0], [1, 0, 1], [2, 1, 0], [3, 2, 0]]
    policy = Policy((NOBODY, 2.0, 2.0, EVERYBODY), Measure("patience"))
    assert policy.exits(confidence_KS).tolist() == [2, 3, 3]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", range(K - 1))
def test_a_confidence_that_is_not_a_number_leaves_nowhere_but_at_the_end(name: str, k: int) -> None:
    logits_KSC = logits()
    logits_KSC[:, 5] = 0.0  # answers agree at every exit, so that patience would leave
    logits_KSC[k, 5, 2] = math.nan
    policy = Policy((*[NOBODY] * k, EVERYBODY, *[NOBODY] * (K - 2 - k), EVERYBODY), Measure(name))
    choice = policy.choose(logits_KSC, N)
    assert choice.exits_S[5] == K - 1
    assert set(choice.exits_S.tolist()) == {k, K - 1}


def test_a_row_that_was_not_a_number_agrees_with_nothing_after_it() -> None:
    logits_KSC = torch.zeros(K, 1, N)
    logits_KSC[1, 0, 0] = math.nan
    confidence_KS, _ = Measure("patience").over(logits_KSC, N)
    assert confidence_KS[[0, 2, 3], 0].tolist() == [0, 0, 1]
    assert confidence_KS[1].isnan().all()


def test_the_last_exit_takes_what_is_not_a_number() -> None:
    policy = Policy((NOBODY, EVERYBODY))
    mask, _ = policy.leave(1, torch.full((3, N), math.nan))
    assert mask.tolist() == [True] * 3


def test_a_confidence_equal_to_the_threshold_leaves() -> None:
    measure, logits_KSC = Measure(), logits()
    confidence_KS, _ = measure.over(logits_KSC, N)
    threshold = confidence_KS[0, 17].item()
    at, above = (Policy((t, NOBODY, NOBODY, EVERYBODY)) for t in (threshold, math.nextafter(threshold, 2)))
    assert at.choose(logits_KSC, N).exits_S[17] == 0
    assert torch.equal(above.exits(confidence_KS.double()) == 0, confidence_KS[0] > threshold)


def test_nobody_and_everybody() -> None:
    logits_KSC = logits()
    assert Policy((NOBODY, NOBODY, NOBODY, EVERYBODY)).choose(logits_KSC, N).exits_S.tolist() == [K - 1] * S
    assert Policy((EVERYBODY, NOBODY, NOBODY, EVERYBODY)).choose(logits_KSC, N).exits_S.tolist() == [0] * S


def test_no_rows_and_one_exit() -> None:
    policy = Policy((NOBODY, EVERYBODY), Measure("patience"))
    mask, state = policy.leave(0, torch.zeros(0, N))
    assert mask.shape == (0,)
    mask, _ = policy.leave(1, torch.zeros(0, N), state)
    assert mask.shape == (0,)
    choice = Policy((EVERYBODY,)).choose(torch.randn(1, 5, N), N)
    assert choice.exits_S.tolist() == [0] * 5


@pytest.mark.parametrize("name", NAMES)
def test_bf16_logits_are_judged_in_float32(name: str) -> None:
    measure = Measure(name) if name == "patience" else Measure(name, temperatures=(1.5,) * K)
    logits_KSC = logits().bfloat16()
    confidence_KS, _ = measure.over(logits_KSC, N)
    assert confidence_KS.dtype == torch.float32
    assert torch.equal(confidence_KS, measure.over(logits_KSC.float(), N)[0])


def test_a_saved_policy_comes_back_and_equal_ones_give_equal_bytes(tmp_path: Path) -> None:
    found = {"procedure": "by hand", "split": "digits/search", "fingerprint": "f", "budget": 4e6}
    policy = Policy((0.1, 1 / 3, EVERYBODY), Measure("entropy", temperatures=(1.1, 0.9, 1.0)), found, "abc")
    policy.save(tmp_path / "run" / "policy.json")
    assert Policy.load(tmp_path / "run" / "policy.json") == policy
    reordered = dataclasses.replace(policy, found=dict(reversed(found.items())))
    reordered.save(tmp_path / "other.json")
    assert (tmp_path / "other.json").read_bytes() == (tmp_path / "run" / "policy.json").read_bytes()


def test_a_policy_is_for_one_network() -> None:
    policy = Policy((0.5, EVERYBODY), network="a" * 64)
    policy.check_network("a" * 64)
    Policy((0.5, EVERYBODY)).check_network("b" * 64)
    with pytest.raises(UsageError, match="weights aaaaaaaaaaaa, not bbbbbbbbbbbb"):
        policy.check_network("b" * 64)


def test_logits_of_another_number_of_exits_are_refused() -> None:
    with pytest.raises(UsageError, match="for 2 exits; the logits are of 4"):
        Policy((0.5, EVERYBODY)).choose(logits(), N)


WHOLE = {
    "format": 1,
    "measure": {"name": "softmax", "renormalise": False, "temperatures": None},
    "thresholds": [0.5, -1e8],
    "network": None,
    "found": {},
}


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        ("{", OfframpError, "is damaged"),
        ('{"format": 1}', OfframpError, "thresholds"),
        (json.dumps({"format": 3, "new": 1}), UsageError, "newer offramp"),
        *(
            (json.dumps({**WHOLE, **change}), OfframpError, f"{next(iter(change))}.*`offramp policy`")
            for change in (
                {"more": 1},
                {"measure": {**WHOLE["measure"], "temperatures": "hot"}},
                {"thresholds": ["0.5", -1e8]},
            )
        ),
        (json.dumps({**WHOLE, "thresholds": [math.nan, -1e8]}), OfframpError, "finite"),
        (
            json.dumps({**WHOLE, "measure": {**WHOLE["measure"], "name": "mood"}}),
            OfframpError,
            "measure 'mood' is unknown",
        ),
    ],
)
def test_a_file_that_is_no_policy_is_refused(tmp_path: Path, content: str, error: type[Exception], said: str) -> None:
    (tmp_path / "p.json").write_text(json.dumps(WHOLE))
    assert Policy.load(tmp_path / "p.json") == Policy((0.5, EVERYBODY))
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(error, match=said):
        Policy.load(tmp_path / "p.json")


def test_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        Policy.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Policy(()), "last of the thresholds must be -1e"),
        (lambda: Policy((0.5, 0.6)), "last of the thresholds must be -1e"),
        (lambda: Policy((math.nan, EVERYBODY)), "finite"),
        (lambda: Policy((math.inf, EVERYBODY)), "finite"),
        (lambda: Policy((0.5, EVERYBODY), found={"x": torch.zeros(1)}), "JSON"),
        (lambda: Policy((0.5, EVERYBODY), found={"x": math.nan}), "JSON"),
        (lambda: Policy((0.5, EVERYBODY), Measure(temperatures=(1.0, 1.0, 1.0))), "3 temperatures for 2 exits"),
        (lambda: Measure("sofmax"), "Did you mean softmax"),
        (lambda: Measure(temperatures=(1.0, 0.0)), "above 0"),
        (lambda: Measure("patience", temperatures=(1.0, 1.0)), "looks only at answers"),
        (lambda: Measure("patience", renormalise=True), "looks only at answers"),
    ],
)
def test_what_cannot_be_is_refused(make, said) -> None:
    with pytest.raises(UsageError, match=said):
        make()


def test_a_file_that_was_changed_is_noticed_and_one_without_a_hash_is_read(tmp_path: Path) -> None:
    """A flipped bit in a threshold gave other exits, and in a certificate another promise, without a word."""
    path = tmp_path / "p.json"
    policy = Policy((0.5, EVERYBODY), found={"certificate": {"risk": 0.01}})
    policy.save(path)
    content = path.read_text()
    for old, new in ((" 0.5,", " 0.7,"), ("0.01", "0.09"), ("softmax", "margin")):
        path.write_text(content.replace(old, new))
        assert path.read_text() != content
        with pytest.raises(OfframpError, match="hash"):
            Policy.load(path)
    by_hand = {key: value for key, value in json.loads(content).items() if key != "sha256"}
    path.write_text(json.dumps({**by_hand, "thresholds": [0.7, EVERYBODY]}))
    assert Policy.load(path).thresholds == (0.7, EVERYBODY)
