"""Targets in Python. Each module has run(data), which raises for an input that makes something fail."""
