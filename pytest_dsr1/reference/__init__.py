"""The embedded engine: a small language model and the server that serves it, a process of its own."""
