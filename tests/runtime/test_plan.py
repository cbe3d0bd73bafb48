import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import UsageError
from offramp.runtime import SIZES, Plan, Tally


@given(
    st.integers(1, 300),
    st.lists(st.integers(1, 300), max_size=6).map(tuple) | st.just(SIZES),
    st.none() | st.integers(1, 300),
)
def test_rows_are_rounded_up_to_the_nearest_size_within_a_chunk(images, sizes, chunk) -> None:
    rows = Plan(sizes=sizes, chunk=chunk).rows(images)
    assert rows >= images
    assert rows == images or (rows in sizes and (chunk is None or rows <= chunk))
    assert not [size for size in sizes if images <= size < rows]
    if any(images <= size and (chunk is None or size <= chunk) for size in sizes):
        assert rows in sizes


def test_without_a_chunk_rows_are_rounded_too() -> None:
    assert [Plan(chunk=None).rows(images) for images in (1, 5, 33, 129)] == [1, 6, 48, 129]


def test_no_size_wastes_more_than_half_of_the_images() -> None:
    plan = Plan(chunk=None)
    assert max(plan.rows(images) / images for images in range(1, 129)) <= 1.5


@pytest.mark.parametrize("chunk", [0, -1, 2.5, "2"])
def test_chunks_that_are_no_number_of_rows_are_refused(chunk) -> None:
    with pytest.raises(UsageError, match=f"chunk must be a whole number of at least 1, not {chunk!r}"):
        Plan(chunk=chunk)


def test_sizes_below_1_are_refused() -> None:
    with pytest.raises(UsageError, match="sizes must be a whole number of at least 1, not 0"):
        Plan(sizes=(4, 0))


def test_a_tally_adds_up() -> None:
    tally = Tally(3)
    tally.answer(torch.tensor([0, 2, 2]))
    tally.answer(torch.tensor([], dtype=torch.int64))
    tally.answer(torch.tensor([1]))
    assert (tally.exits_K, tally.images) == ([1, 1, 2], 4)
    tally.stage_rows_K, tally.head_rows_K = [4, 3, 2], [4, 0, 2]
    assert tally.operations([100, 200, 300], [1, 2, 3]) == 400 + 600 + 600 + 4 + 6
