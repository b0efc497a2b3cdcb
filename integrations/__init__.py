"""Clients for what is outside. They know nothing of Pickaxe."""
