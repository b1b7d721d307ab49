"""Scripts that make and measure packaged data; run as modules from the root."""
