"""The engine: reduces runs, runs tools, sweeps what is due, and keeps the limits. See docs/internals.md."""
