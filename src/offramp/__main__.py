"""`python -m offramp` is the command `offramp`."""

import sys

from offramp.cli import main

if __name__ == "__main__":
    sys.exit(main())
