"""Everything between two peers: identity, host, streams, the exchange.

Start at `host.open_host`. Only this package and `tokenplace.dht` import libp2p; what it gets wrong
is mended in the `upstream_*` modules, one fault or one group of related faults each, and nothing of
it leaks upward.
"""

from tokenplace.peer.upstream_imports import mend_import

mend_import()
