"""Times that are estimated or measured, for people."""


def duration_in_words(seconds: float) -> str:
    """`40 s`, `4 min`, `2.3 h`, `12 days`."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
