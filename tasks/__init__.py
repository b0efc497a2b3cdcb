"""Agents: plain async functions, one pattern per file."""
