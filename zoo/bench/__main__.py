"""``python -m zoo.bench``."""

import sys

from zoo.bench import main

if __name__ == "__main__":
    sys.exit(main())
