"""Real clients against a real peer with real small models, each in an environment of its own
(`scripts/clients.py`), because not all of them fit together. A program of `programs/` does what the
users of its client do, and prints what it got as JSON.
"""
