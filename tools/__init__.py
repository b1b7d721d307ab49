"""Scripts that make and measure what the package carries; run as modules from the checkout's root."""
