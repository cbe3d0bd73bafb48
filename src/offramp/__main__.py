"""`python -m offramp` is the command `offramp`."""

import os
import sys

if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
        del sys.path[0]  # Python puts the folder one works in first, whose files are no part of this program
    from offramp.cli import main

    sys.exit(main())
