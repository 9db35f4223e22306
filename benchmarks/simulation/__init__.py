"""Whole networks in one process and in virtual time: `python -m benchmarks.simulation SEED...`.

Start at `world.run_world`. Router, finder, directory, exchange, donor, admission and sealing are
the real ones; what is simulated is hosts and their links (`network`, `links`), the DHT (`lookup`)
and the model (`tokenplace.engine.fake`). One seed decides everything, so what goes wrong once can
be looked at as often as one likes.
"""
