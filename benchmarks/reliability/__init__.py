"""The parts of benchmarks/drills.py: processes, comparison of run folders, injected faults, and the drills themselves."""
