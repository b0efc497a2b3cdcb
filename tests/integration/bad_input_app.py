"""A worker that knows an agent whose tool another worker does not."""

from pickaxe import Pickaxe
from tests.integration.test_bad_input import needs_unheard_of

app = Pickaxe("agents-only", agents=[needs_unheard_of])
