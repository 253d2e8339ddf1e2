"""The commands of the command line, one module each; what is slow to import is imported when a command runs."""
