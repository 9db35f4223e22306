"""Benchmarks: `python -m benchmarks.NAME [--quick] [--json FILE]`.

Every one prints a table and can write it as JSON: a list of {"workload", "n", "ours", "rival",
"ratio", "unit", "ok"}, null where a field does not apply. Machines are noisy: what is compared is
measured in turns in one run, and ratios are what counts.
"""
