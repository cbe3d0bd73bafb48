"""The two errors a user meets as one clear line; anything else is ours and keeps its traceback."""


class UsageError(ValueError):
    """Something that was asked for cannot be: what, which value, the way out. The command line exits with status 2."""


class OfframpError(RuntimeError):
    """Something went wrong that the user can mend: a damaged file, a full disk, a loss that is not finite. Status 1."""
