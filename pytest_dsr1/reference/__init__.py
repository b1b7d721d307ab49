"""The embedded engine: a small language model and its server, run as a process."""
