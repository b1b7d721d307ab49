"""Values and arithmetic: no pytest, no asyncio, no network, no files."""
