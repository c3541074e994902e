"""``python -m zoo.generate``."""

import sys

from zoo.generate import main

if __name__ == "__main__":
    sys.exit(main())
