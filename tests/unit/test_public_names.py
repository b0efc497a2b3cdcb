"""What `import pickaxe` promises."""

import subprocess
import sys

import pickaxe


def test_every_public_name_can_be_had_and_is_listed_in_order():
    assert pickaxe.__all__ == sorted(pickaxe.__all__)
    for name in pickaxe.__all__:
        assert getattr(pickaxe, name) is not None


def test_importing_pickaxe_loads_no_celery_and_no_sqlalchemy():
    code = "import sys, pickaxe, pickaxe.errors; sys.exit(any(m in sys.modules for m in ('celery', 'sqlalchemy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
