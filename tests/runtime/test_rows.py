import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offramp.runtime import Answers
from offramp.runtime.rows import Left, Rows, in_order, join


def maps(num_rows: int) -> Tensor:
    """Channels innermost, and a different number in each place."""
    map_BCHW = torch.arange(num_rows * 24.0).reshape(num_rows, 3, 2, 4)
    return map_BCHW.contiguous(memory_format=torch.channels_last)


def rows(num_rows: int, first: int = 0) -> Rows:
    """Images numbered from `first`, with a map, a vector and what a measure remembers."""
    ids_B = torch.arange(first, first + num_rows)
    return Rows(ids_B, (maps(num_rows) + 1000 * first, 10.0 * ids_B[:, None]), (-ids_B,))


def check(found: Rows, of: Rows) -> None:
    """Every image has the rows it had in `of`, whose ids are in order and start anywhere."""
    where_B = found.ids_B - of.ids_B[0]
    for tensor, whole in zip(found.carry, of.carry, strict=True):
        assert len(tensor) == found.run
        assert torch.equal(found.of(tensor), whole[where_B])
    assert torch.equal(found.state[0], -found.ids_B)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_images_keep_their_rows_through_any_sequence_of_steps(data) -> None:
    whole = rows(data.draw(st.integers(1, 12)))
    found = whole
    for _ in range(data.draw(st.integers(1, 5))):
        step = data.draw(st.sampled_from(["keep", "compact", "pad", "drop", "join"]))
        if step == "keep":
            mask = data.draw(st.lists(st.booleans(), min_size=len(found), max_size=len(found)).filter(any))
            found = found.keep(torch.tensor(mask).nonzero().squeeze(1))
        elif step == "compact":
            found = found.compact()
            assert found.run == len(found)
        elif step == "pad":
            size = data.draw(st.integers(len(found), 15))
            found = found.compact(size)
            assert found.run == size
        elif step == "drop":
            size, before = data.draw(st.integers(len(found), 15)), found.run
            found = found.drop(size)
            assert found.run == min(size, before)
        else:
            size = data.draw(st.integers(1, 12))
            found = join(found.compact().split(size))
            assert found.run == len(found)
        check(found, whole)


def test_channels_stay_innermost_wherever_rows_move() -> None:
    some = rows(6).keep(torch.tensor([1, 4, 5]))
    for moved in (
        some.compact(),
        some.compact(4),
        some.drop(3),
        join([some, rows(3, 10)]),
        join([some]).cut(slice(2)),
        join([some]).cut(slice(2, None)),
    ):
        assert moved.carry[0].is_contiguous(memory_format=torch.channels_last)
        assert not moved.carry[0].is_contiguous()


def test_plain_maps_stay_plain() -> None:
    plain = Rows(torch.arange(4), (maps(4).contiguous(),)).keep(torch.tensor([0, 3])).compact(3)
    assert plain.carry[0].is_contiguous()
    assert torch.equal(plain.carry[0], maps(4)[[0, 3, 0]])


def test_nothing_is_copied_where_no_row_is_saved() -> None:
    whole = rows(5)
    assert whole.compact() is whole
    assert whole.drop(6) is whole
    some = whole.keep(torch.tensor([0, 1, 2, 4]))
    assert some.drop(5) is some
    assert all(a is b for a, b in zip(some.carry, whole.carry, strict=True))


def test_pieces_are_views() -> None:
    whole = rows(7)
    pieces = whole.split(3)
    assert [len(piece) for piece in pieces] == [3, 3, 1]
    front, back = whole.cut(slice(2)), whole.cut(slice(2, None))
    assert (len(front), len(back)) == (2, 5)
    for piece in (*pieces, front, back):
        check(piece, whole)
        assert piece.carry[0].untyped_storage().data_ptr() == whole.carry[0].untyped_storage().data_ptr()


@pytest.mark.parametrize("order", [[[0, 1, 2, 3]], [[3, 0], [2], [1]], [[1, 2], [0, 3]]])
def test_answers_come_in_the_order_of_the_images(order) -> None:
    left = []
    for ids in order:
        ids_B = torch.tensor(ids)
        left.append(Left(ids_B, Answers(ids_B + 10, ids_B + 20, ids_B + 0.5)))
    answers = in_order(left, 4)
    assert answers.labels_B.tolist() == [10, 11, 12, 13]
    assert answers.exits_B.tolist() == [20, 21, 22, 23]
    assert answers.confidence_B.tolist() == [0.5, 1.5, 2.5, 3.5]
