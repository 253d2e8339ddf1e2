"""What the rest runs on: files, names, processes, devices and the console."""
