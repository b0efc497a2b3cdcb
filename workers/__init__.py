"""The app that workers run: agents and tools, queues and limits."""
