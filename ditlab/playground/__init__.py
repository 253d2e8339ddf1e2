"""A model in a browser, and behind an HTTP API."""
