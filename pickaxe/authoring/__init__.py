"""What agents and tools are written with."""
