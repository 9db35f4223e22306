"""What `make` runs: the preflight and the set-up. Python's standard library only; nothing else is
there yet.
"""
