"""Benchmark the servers of DeepSeek-R1: accuracy gate, exact load generator, B200 comparison, as a pytest plugin."""

__version__ = "0.1.0"
