import dataclasses
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from offramp.costs import cost
from offramp.data import HeldOut
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import Record, certify, record, recorded
from offramp.evaluation.record import Forward
from offramp.policy import Measure
from offramp.storage import save_tensors, weights_hash


def test_record_holds_the_logits_of_evaluation_mode(network, split):
    seen = record(network, split)
    network.eval()
    with torch.no_grad():
        expected = network(split.images)
    torch.testing.assert_close(seen.logits_KSC, expected)
    assert seen.logits_KSC.dtype == torch.float32
    assert seen.targets_S.tolist() == split.targets.tolist()
    assert seen.indices_S.tolist() == list(range(100, 117))
    assert (seen.split, seen.class_names, seen.num_classes) == ("made-up/test", split.class_names, 4)
    assert (seen.num_images, seen.total, seen.damping) == (17, 17, True)


def test_record_leaves_the_network_as_it_was(network, split):
    modes = [module.training for module in network.modules()]
    before = weights_hash(network.state_dict())
    record(network, split)
    assert [module.training for module in network.modules()] == modes
    assert len(set(modes)) == 2  # a frozen layer inside a training network stays frozen
    assert weights_hash(network.state_dict()) == before
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batch_size_and_limit_change_no_logit(network, split, batch_size):
    whole = record(network, split)
    calls = []
    part = record(network, split, batch_size=batch_size, limit=12, progress=lambda *call: calls.append(call))
    torch.testing.assert_close(part.logits_KSC, whole.logits_KSC[:, :12])
    assert part.indices_S.tolist() == whole.indices_S[:12].tolist()
    assert (part.num_images, part.total) == (12, 17)
    assert calls[-1] == (12, 12)
    assert max(now[0] - before[0] for before, now in zip([(0, 12), *calls], calls, strict=False)) <= batch_size


def test_a_limit_beyond_the_end_is_the_whole(network, split):
    assert record(network, split, limit=1000).num_images == 17


def test_save_and_load_give_the_same_record(network, split, tmp_path):
    made = record(network, split)
    made.save(tmp_path / "records" / "test.safetensors")
    back = Record.load(tmp_path / "records" / "test.safetensors")
    for field in dataclasses.fields(Record):
        mine, theirs = getattr(made, field.name), getattr(back, field.name)
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs


def test_recorded_serves_the_same_weights_and_images_from_disk(network, split, tmp_path):
    passes = []
    first = recorded(network, split, tmp_path / "r", progress=lambda *call: passes.append(call))
    again = recorded(network, split, tmp_path / "r", progress=lambda *call: pytest.fail("a second pass"))
    assert passes
    assert torch.equal(first.logits_KSC, again.logits_KSC)


def test_changed_weights_are_not_served_from_an_old_record(network, split, tmp_path):
    old = recorded(network, split, tmp_path / "r")
    with torch.no_grad():
        network.exits[2][1].bias[0] += 1
    new = recorded(network, split, tmp_path / "r")
    torch.testing.assert_close(new.logits_KSC[2, :, 0], old.logits_KSC[2, :, 0] + 1)
    assert Record.load(tmp_path / "r").weights == weights_hash(network.state_dict())


def test_changed_batch_norm_statistics_count_as_changed_weights(network, split, tmp_path):
    old = recorded(network, split, tmp_path / "r")
    network.stages[1][1].running_mean += 1
    assert not torch.equal(recorded(network, split, tmp_path / "r").logits_KSC, old.logits_KSC)


def test_other_images_and_other_limits_are_not_served_from_an_old_record(network, split, tmp_path):
    recorded(network, split, tmp_path / "r")
    other = dataclasses.replace(split, images=split.images + 1)
    assert recorded(network, other, tmp_path / "r").fingerprint == other.fingerprint()
    assert recorded(network, other, tmp_path / "r", limit=3).num_images == 3
    assert recorded(network, other, tmp_path / "r").num_images == 17


def test_a_damaged_record_is_made_again(network, split, tmp_path):
    made = recorded(network, split, tmp_path / "r")
    content = bytearray((tmp_path / "r").read_bytes())
    content[-20] ^= 1
    (tmp_path / "r").write_bytes(content)
    assert torch.equal(recorded(network, split, tmp_path / "r").logits_KSC, made.logits_KSC)
    assert torch.equal(Record.load(tmp_path / "r").logits_KSC, made.logits_KSC)


def test_a_file_that_is_no_record_is_refused(tmp_path: Path):
    save_tensors(tmp_path / "w.safetensors", {"weight": torch.zeros(3)})
    with pytest.raises(UsageError, match="not a record"):
        Record.load(tmp_path / "w.safetensors")


def test_no_images_is_said(network, split):
    empty = dataclasses.replace(split, images=split.images[:0], targets=split.targets[:0])
    with pytest.raises(UsageError, match="made-up/test holds no images"):
        record(network, empty)


def test_not_finite_pixels_name_the_exit_and_the_image(network, split):
    split.images[9, 0, 2, 2] = float("nan")
    with pytest.raises(OfframpError, match="Exit 1 gives logits that are not finite for image 109 of made-up/test"):
        record(network, split)
    assert network.training


def test_not_finite_weights_name_the_exit(network, split):
    with torch.no_grad():
        network.exits[1][1].weight[0, 0] = float("inf")
    with pytest.raises(OfframpError, match="Exit 2"):
        record(network, split)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"logits_KSC": torch.zeros(2, 3)}, r"\[K, S, C\]"),
        ({"logits_KSC": torch.zeros(2, 0, 3), "targets_S": torch.zeros(0), "indices_S": torch.zeros(0)}, "no images"),
        ({"targets_S": torch.zeros(4, dtype=torch.int64)}, "4 targets"),
        ({"targets_S": torch.tensor([0, 1, 2])}, r"outside \[0, 2\)"),
        ({"targets_S": torch.tensor([0, -1, 1])}, r"outside \[0, 2\)"),
        ({"logits_KSC": torch.zeros(2, 3, 5)}, "2 classes"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(changes, said):
    good = Record(torch.zeros(2, 3, 2), torch.tensor([0, 1, 1]), torch.arange(3), ("a", "b"), "s", "f", "w", 3, "cpu")
    with pytest.raises(UsageError, match=said):
        dataclasses.replace(good, **changes)


@pytest.mark.parametrize(("arguments", "said"), [({"limit": 0}, "limit"), ({"batch_size": 0}, "batch_size")])
def test_impossible_arguments_are_refused(network, split, arguments, said):
    with pytest.raises(UsageError, match=f"{said} must be .*at least 1, not 0"):
        record(network, split, **arguments)


def test_held_out_images_as_a_whole_are_no_part(network, tmp_path):
    for made in (record, lambda *arguments: recorded(*arguments, tmp_path / "record")):
        with pytest.raises(UsageError, match=r"such as val\.search or test, .*not of type HeldOut"):
            made(network, HeldOut())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_type_is_given_images_of_its_own(network, split, dtype):
    found = record(network.to(dtype), split)
    assert found.logits_KSC.dtype == torch.float32
    expected = network.eval()(split.images.to(dtype)).float()
    torch.testing.assert_close(found.logits_KSC, expected, rtol=0, atol=0.1 if dtype == torch.bfloat16 else 1e-6)


def test_another_number_of_classes_is_refused(network, split):
    with pytest.raises(UsageError, match="7 classes, the network 4"):
        record(network, dataclasses.replace(split, num_classes=7))


def test_logits_of_another_shape_are_refused(network, split):
    network.forward = lambda images: torch.zeros(len(images), 5)
    with pytest.raises(UsageError, match=r"\[5, 5\]; it should give \[3, 5, 5\]"):
        record(network, split)


@pytest.mark.parametrize("name", ["softmax", "margin", "entropy", "patience"])
def test_confidences_and_answers_do_not_depend_on_how_many_images_are_read_together(make_record, read_together, name):
    whole = make_record(S=50, N=6)
    pieces = dataclasses.replace(whole)  # has read nothing yet
    read_together(7 * 7)  # seven images of 6 + 1 outputs, and one left over
    read = pieces.read(Measure(name))
    for mine, expected in zip(read, Measure(name).over(whole.logits_KSC, 6), strict=True):
        assert torch.equal(mine, expected)
    assert pieces.read(Measure(name))[0] is read[0]


def test_finite_logits_whose_sum_is_not_are_accepted():
    logits_KSC = torch.full((1, 2, 3), 3e38)
    assert Record(logits_KSC, torch.zeros(2, dtype=torch.int64), torch.arange(2), ("a", "b", "c"), "s", "f", "w", 2, "")


def test_logits_from_anywhere_are_a_record(network, split):
    seen = record(network, split)
    for logits in (seen.logits_KSC, list(seen.logits_KSC.double().requires_grad_())):
        made = Record.of(logits, seen.targets_S, network)
        assert torch.equal(made.logits_KSC, seen.logits_KSC)
        assert (made.num_classes, made.damping, made.weights) == (4, True, seen.weights)
    plain = Record.of(seen.logits_KSC, seen.targets_S, class_names=list("abcd"), split="mine/search")
    assert (plain.class_names, plain.split, plain.damping) == (tuple("abcd"), "mine/search", True)
    assert Record.of(seen.logits_KSC, seen.targets_S).num_classes == 5  # nothing says that the last is no class
    with pytest.raises(UsageError, match="logits of 17 images, but 3 targets"):
        Record.of(seen.logits_KSC, torch.zeros(3))


def test_halves_made_of_logits_give_a_certificate(network):
    network.eval()
    targets = torch.arange(1200) % 4
    logits = torch.randn(3, 1200, 5) + 9 * torch.nn.functional.one_hot(targets, 5)
    halves = {"search": slice(0, 600), "certify": slice(600, 1200)}
    parts = [Record.of(logits[:, here], targets[here], network, split=f"mine/{name}") for name, here in halves.items()]
    policy = certify(*parts, cost(network, (1, 4, 4)), risk=0.02, confidence=0.95)
    assert policy.network == weights_hash(network.state_dict())
    with pytest.raises(UsageError, match="share"):
        certify(parts[0], dataclasses.replace(parts[0], split="mine/certify"), cost(network, (1, 4, 4)))


def test_a_record_of_a_torch_data_set_is_that_of_its_split(network, split):
    whole = TensorDataset(split.images, split.targets)
    for given in (whole, DataLoader(whole, 3)):
        made = record(network, given)
        torch.testing.assert_close(made.logits_KSC, record(network, split).logits_KSC)
        assert (made.split, made.num_classes) == ("torch/test", 4)


def test_a_record_of_another_form_is_made_again(network, split, tmp_path):
    """One in int8 was used again after its scales had changed."""
    ones = torch.ones(len(split), network.num_outputs)
    for scale in (1.0, 2.0, 2.0):
        form = Forward(f"int8 {scale}", lambda images, scale=scale: scale * ones[: len(images)].expand(3, -1, -1))
        made = recorded(network, split, tmp_path / "r", forward=form)
        assert made.logits_KSC.unique().tolist() == [scale]
