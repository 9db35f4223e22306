"""tokenplace: LLM inference given and taken over a libp2p network without a central relay.

Read `tokenplace.generation` first, then `node` for how a running peer is put together.
"""

__version__ = "0.1.0"
