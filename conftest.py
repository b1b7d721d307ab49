"""A checkout that nobody installed is a working tool too: pytest finds the plugin here."""

pytest_plugins = ["pytest_dsr1.plugin"]
