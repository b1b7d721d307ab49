"""One interface, and a variant for each way a server comes about."""
