import numpy as np

from offramp.data.randomness import Draw, Purpose, hashes, permutation

WORD = 2**64


def slow_hash(*counters: int) -> int:
    """The same in Python's own whole numbers."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
        return x ^ (x >> 31)

    state = mix(counters[0])
    for counter in counters[1:]:
        state = mix((state + 0x9E3779B97F4A7C15) % WORD ^ counter % WORD)
    return state


def test_hashes_equal_a_slow_loop() -> None:
    found = hashes(Purpose.AUGMENTATION, 3, -1, np.arange(5)[:, None], np.arange(4)[None, :])
    expected = [[slow_hash(Purpose.AUGMENTATION, 3, -1, index, k) for k in range(4)] for index in range(5)]
    assert found.tolist() == expected


def test_a_permutation_is_one_and_never_changes() -> None:
    order = permutation(10, Purpose.ORDER, 0, 0)
    assert sorted(order) == list(range(10))
    by_hand = sorted(range(10), key=lambda index: slow_hash(Purpose.ORDER, 0, 0, index))
    assert order.tolist() == by_hand == [9, 1, 2, 7, 6, 5, 4, 0, 8, 3]


def test_permutations_differ_by_purpose_seed_and_epoch() -> None:
    orders = [
        permutation(100, Purpose.ORDER, 0, 0),
        permutation(100, Purpose.ORDER, 1, 0),
        permutation(100, Purpose.ORDER, 0, 1),
        permutation(100, Purpose.HELD_OUT, 0, 0),
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_every_place_is_equally_likely() -> None:
    trials, places = 6000, 6
    counts = np.zeros((places, places))
    for seed in range(trials):
        counts[np.arange(places), permutation(places, Purpose.ORDER, seed, 7)] += 1
    chi_squared = ((counts - trials / places) ** 2 / (trials / places)).sum()
    assert chi_squared < 60  # 25 degrees of freedom: exceeded with probability 1e-4


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    numbers = Draw(seed=0, epoch=3).uniforms(np.arange(20000), 4)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    np.testing.assert_allclose(numbers.mean(0), 0.5, atol=5 * np.sqrt(1 / 12 / 20000))
    assert np.abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 5 / np.sqrt(20000)
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 5 / np.sqrt(20000)  # neighbouring images


def test_the_numbers_of_an_image_do_not_depend_on_the_batch() -> None:
    draw = Draw(seed=5, epoch=1)
    together = draw.uniforms(np.array([9, 4, 7]), 3)
    assert np.array_equal(together[1:2], draw.uniforms(np.array([4]), 3))
    assert not np.array_equal(together[1:2], Draw(seed=5, epoch=2).uniforms(np.array([4]), 3))
    assert not np.array_equal(together[1:2], Draw(seed=6, epoch=1).uniforms(np.array([4]), 3))
