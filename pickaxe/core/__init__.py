"""The durable core: a deterministic loop, and the reduction of a run's log to what it wants next.

Pure: no I/O, no clock, no services. Everything here can be tested in microseconds.
"""
