"""Drills: `python -m benchmarks.drills [--quick] [--only NAME ...] [--seed N] [--json FILE]`.

Start at `table.Drill`. Real peers in processes of their own are killed, frozen and left alone, and
what the app saw is compared with a pass line.
"""
