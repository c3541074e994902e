"""``python -m tests.fuzz._child MODULE SEED CASE...``: prints a line of JSON for each case.

The line is null, or says what was found. Everything else that a case prints goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import tempfile
import traceback


def main() -> None:
    module, seed, *cases = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    domain = importlib.import_module(module)
    for number in cases:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            what = None
            try:
                domain.case(random.Random(f"{seed} {number}"))
            except AssertionError as error:
                what = str(error) or traceback.format_exc()
            except Exception:
                what = traceback.format_exc()
            os.chdir("/")
        print(json.dumps(what), file=answers, flush=True)


if __name__ == "__main__":
    main()
