"""For `celery worker --include`: begins the ledger in a worker of the demo. See `pickaxe/demo/_ledger.py`."""

import os
from pathlib import Path

from pickaxe.cli._project import DEFAULT_APP, load_app
from pickaxe.demo._ledger import VARIABLE, keep

if VARIABLE in os.environ:
    keep(load_app(DEFAULT_APP).handles.values(), Path(os.environ[VARIABLE]))
