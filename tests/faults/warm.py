"""A worker process that has imported everything and waits for one line of JSON to say what it shall be.

Importing takes longer than most faults: the tests keep a few of these ready. From that line on it is what
`celery -A tests.faults.app worker …` is.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    import celery.apps.worker
    import celery.bin.celery
    import celery.worker  # noqa: F401

    import pickaxe.app  # noqa: F401
    from pickaxe import _failpoints
    from pickaxe.broker import use_coroutine_pool

    line = sys.stdin.readline()
    if not line:
        return  # the tests are over
    told = json.loads(line)
    os.environ.update(told["environment"])
    use_coroutine_pool()
    _failpoints.arm(os.environ.get("PICKAXE_FAILPOINTS", ""))
    with Path(told["log"]).open("ab") as log, Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = ["celery", "-A", "tests.faults.app", "worker", *told["options"]]

    from celery.__main__ import main as celery_main

    sys.exit(celery_main())


if __name__ == "__main__":
    main()
