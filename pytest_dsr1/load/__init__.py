"""The load generator: turns a point and a URL into samples."""
