import pytest
import torch

from offramp.evaluation.copies import repeats


def by_a_slow_loop(record, before) -> list[bool]:
    logits = torch.cat([before.logits_KSC, record.logits_KSC], 1)[..., : record.num_classes].unbind(1)

    def same(one, other) -> bool:
        return all((a - b).abs().max() <= 1e-4 * a.abs().max() for a, b in zip(one, other, strict=True))

    found = [any(same(logits[i], logits[j]) for j in range(i)) for i in range(len(logits))]
    return found[before.num_images :]


@pytest.mark.parametrize("together", [3, 10**6])
@pytest.mark.parametrize("damping", [True, False])
def test_copies_are_found_as_by_a_slow_loop(make_record, damping, together, monkeypatch):
    monkeypatch.setattr("offramp.evaluation.copies.AT_ONCE", together)
    record, before = (make_record(S=60, N=3, damping=damping) for _ in range(2))
    if damping:
        for one in (record, before):
            one.logits_KSC[-1, :, -1] = -1e8  # an exit without the neuron
    rounding = 1 + 3e-6 * torch.randn(3, 10, 3 + damping)
    record.logits_KSC[:, 20:30] = before.logits_KSC[:, 5:15] * rounding
    record.logits_KSC[:, 40:50] = record.logits_KSC[:, 3:13]
    record.logits_KSC[:2, 50:60] = record.logits_KSC[:2, 3:13]  # the last exit tells them apart
    found = repeats(record, before).tolist()
    assert found == by_a_slow_loop(record, before)
    assert found == [20 <= i < 30 or 40 <= i < 50 for i in range(60)]


def test_many_that_are_all_the_same(make_record):
    record, before = make_record(S=3000), make_record(S=10)
    record.logits_KSC[:] = before.logits_KSC[:, :1] + 1e-6 * torch.randn(record.logits_KSC.shape)
    assert repeats(record, before).all()
    before.logits_KSC[:] = 0.0
    assert repeats(record, before).sum() == 2999
    record.logits_KSC[:] = 0.0
    assert repeats(record, before).all()
