from offramp.show.durations import duration_in_words


def test_times_in_words() -> None:
    seconds = (0.2, 40, 240, 1800, 8280, 3.25 * 3600, 100 * 3600)
    assert [duration_in_words(one) for one in seconds] == ["1 s", "40 s", "4 min", "30 min", "2.3 h", "3.2 h", "4 days"]
