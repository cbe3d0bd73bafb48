"""Maps lie where they can be read, and what is joined lies in a row."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Size, Tensor, fx

from offramp.fast.placing import Places, Region


def nodes() -> list[fx.Node]:
    graph = fx.Graph()
    return [graph.placeholder(f"x{i}") for i in range(40)]


def shape(channels: int) -> Size:
    return Size((2, channels, 3, 3))


def test_what_is_appended_again_and_again_is_never_copied() -> None:
    """A dense block: one slab, each map in front of what is appended to it."""
    places, (a, b, c, ab, abc, *_) = Places(), nodes()
    for node in (a, b, c):
        places.own(node, shape(4))
    places.join(ab, [a, b], shape(8))
    places.join(abc, [ab, c], shape(12))
    slabs, regions, copies = places.settle()
    assert [slab.width for slab in slabs] == [12]
    assert copies == []
    assert regions == {
        a: Region(0, 0, 4), b: Region(0, 4, 4), c: Region(0, 8, 4), ab: Region(0, 0, 8), abc: Region(0, 0, 12)
    }  # fmt: skip


def test_a_map_alone_is_its_own_slab() -> None:
    places, (a, b, ab, *_) = Places(), nodes()
    places.own(a, shape(4))
    places.own(b, shape(2))
    assert [slab.home for slab in places.settle()[0]] == [a, b]
    places.join(ab, [a, b], shape(6))
    assert [slab.home for slab in places.settle()[0]] == [None]


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("own"), st.integers(1, 4)),
        st.tuples(st.just("join"), st.lists(st.integers(0, 30), min_size=1, max_size=4)),
        st.tuples(st.just("cut"), st.integers(0, 30), st.integers(0, 20), st.integers(1, 20)),
    ),
    min_size=2,
    max_size=14,
)


@settings(max_examples=300, deadline=None)
@given(OPERATIONS)
def test_whoever_reads_a_map_finds_it(operations: list) -> None:
    """Own maps are written once, copies are made when their join is reached; nothing else is written."""
    places, truth, script = Places(), {}, []
    for node, (kind, *how) in zip(nodes(), [("own", 3), *operations], strict=False):
        before = [*truth]
        if kind == "own":
            places.own(node, shape(how[0]))
            truth[node] = torch.rand(how[0])
        elif kind == "join":
            sources = [before[i % len(before)] for i in how[0]]
            truth[node] = torch.cat([truth[s] for s in sources])
            if len(truth[node]) > 200:
                return
            places.join(node, sources, shape(len(truth[node])))
        else:
            source = before[how[0] % len(before)]
            first = how[1] % len(truth[source])
            truth[node] = truth[source][first : first + how[2]]
            places.cut(node, source, first, len(truth[node]))
        script.append((node, kind))
    slabs, regions, copies = places.settle()
    memory = [torch.full((slab.width,), float("nan")) for slab in slabs]

    def read(region: Region) -> Tensor:
        return memory[region.slab][region.first : region.first + region.width]

    for node, kind in script:
        if kind == "own":
            assert read(regions[node]).isnan().all()
            read(regions[node]).copy_(truth[node])
        for copy in copies:
            if copy.node is node:
                assert read(copy.target).isnan().all()
                read(copy.target).copy_(read(copy.source))
        for reached in truth:  # also that what was there before stays
            assert torch.equal(read(regions[reached]), truth[reached])
            if reached is node:
                break
    assert sum(slab.width for slab in slabs) <= sum(len(value) for value in truth.values())
    for node, kind in script:
        home = slabs[regions[node].slab].home
        assert home is None or all(
            kind == "cut" or other is home for other, kind in script if regions[other].slab == regions[node].slab
        )
