"""The command line: one module a command. Slow imports, PyTorch above all, happen inside the commands."""
