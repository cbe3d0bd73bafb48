"""Rows reach the place where a stage will read them, each copied once, in the order in which they came."""

import pytest
import torch

from offramp.errors import UsageError
from offramp.runtime.chunks import Chunk, Queue
from offramp.runtime.rows import Rows, join


def rows(first: int, count: int, innermost: bool = False, places: bool = False) -> Rows:
    """Images whose every number is their id, with two others' rows between them where `places`."""
    ids_B = torch.arange(first, first + count)
    values_B = ids_B.float().repeat_interleave(3) if places else ids_B.float()
    if places:
        values_B[1::3] = values_B[2::3] = -1.0
    map_BCHW = values_B.view(-1, 1, 1, 1).expand(-1, 2, 3, 4).contiguous()
    if innermost:
        map_BCHW = map_BCHW.contiguous(memory_format=torch.channels_last)
    carry = (map_BCHW, values_B[:, None].repeat(1, 5))
    return Rows(ids_B, carry, (ids_B * 10,), torch.arange(count) * 3 if places else None)


@pytest.mark.parametrize("innermost", [False, True])
@pytest.mark.parametrize("places", [False, True])
@pytest.mark.parametrize("counts", [(3, 1, 9, 2), (4, 4), (10,), (1, 1, 1), (3, 5, 8)], ids=str)
def test_what_comes_out_is_what_went_in_chunk_by_chunk(counts, places, innermost):
    queue, first = Queue(4), 0
    for count in counts:
        queue.put(rows(first, count, innermost, places))
        first += count
    assert len(queue) == first
    found = []
    while len(queue):
        assert queue.first == sum(map(len, found))
        found.append(queue.take())
    assert [len(one) for one in found] == [4] * (first // 4) + [first % 4] * (first % 4 > 0)
    for one in found:
        assert one.run == len(one)
        assert one.carry[0].is_contiguous(memory_format=torch.channels_last) == innermost
    together, wanted = join(found), rows(0, first)
    for got, want in zip(
        (together.ids_B, *together.carry, *together.state), (wanted.ids_B, *wanted.carry, *wanted.state), strict=True
    ):
        assert torch.equal(got, want)
    assert queue.first is None


def test_rows_of_another_layout_than_the_first_are_taken_in():
    queue = Queue(8)
    for first, innermost, places in ((0, True, True), (3, False, True), (5, False, False)):
        queue.put(rows(first, 2 + (first == 0), innermost, places))
    assert torch.equal(queue.take().carry[0], rows(0, 7).carry[0])


def test_whole_chunks_that_stand_together_are_not_copied():
    whole, queue = rows(0, 9), Queue(4)
    queue.put(whole)
    assert queue.take().carry[0].data_ptr() == whole.carry[0].data_ptr()
    assert isinstance(queue.chunks[0], Rows)
    assert isinstance(queue.chunks[1], Chunk)


def test_another_size_of_images_is_refused_not_stretched():
    queue = Queue(4)
    queue.put(rows(0, 2))
    with pytest.raises(UsageError, match="one size"):
        queue.put(Rows(torch.arange(2, 4), (torch.zeros(2, 2, 1, 4), torch.zeros(2, 5)), (torch.zeros(2),)))


def test_the_first_id_is_fetched_once_a_chunk(monkeypatch):
    fetched = []

    class Fetched:
        def __init__(self, ids_1):
            fetched.append(int(ids_1))

        def read(self):
            return torch.tensor([fetched[0]])

    monkeypatch.setattr("offramp.runtime.chunks.PendingCopy", Fetched)
    queue = Queue(4)
    assert queue.first is None
    for first, count in ((0, 3), (3, 6), (9, 1), (10, 9)):
        queue.put(rows(first, count))
        assert queue.first == 0
    assert fetched == [0, 4, 8, 12, 16]
