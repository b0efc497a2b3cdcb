"""`python -m pickaxe`."""

from pickaxe.cli import main

main()
