"""The places that have a name in the source, found there: a new one is covered without being listed anywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pickaxe

_PACKAGE = Path(pickaxe.__file__).parent
_CLIENT = [_PACKAGE / "client.py", _PACKAGE / "_run.py"]


def _in(*sources: Path) -> list[str]:
    found = {place for s in sources for place in re.findall(r"\bfailpoint\(\"([a-z_.]+)\"\)", s.read_text("utf-8"))}
    return sorted(found)


ENGINE = _in(*(source for source in _PACKAGE.rglob("*.py") if source not in _CLIENT))
"""Where a worker may die."""

SET_ASIDE = _in(*(_PACKAGE / "engine" / f"{name}.py" for name in ("_doubt", "_effects", "_quarantine", "_resolution")))
"""Those that only a call of unknown outcome, a transactional one or a suspect passes: `test_effects.py` and
`test_quarantine.py` die there."""

CLIENT = _in(*_CLIENT)
"""Where only a client may die. It also passes places of the engine."""
