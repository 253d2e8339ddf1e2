"""Models from and to other code."""
