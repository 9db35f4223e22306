"""A lab: hosts on one machine, each with a network of its own, and links between them that delay,
lose, double, reorder, throttle and cut. Start at `lab.open_lab`.

| module | what |
|---|---|
| `router.py` | what a link does to a packet, purely |
| `namespaces.py` | network namespaces without names, and a TUN device in each |
| `carrier.py` | the process that holds both and carries the packets |
| `lab.py` | that process, as a test or a drill sees it |
| `peers.py` | a network of peers on such hosts |

It differs from `tc netem` in what it needs: no kernel module, and no root where the system lets
users make namespaces of their own. Nothing in it reaches the machine's network.
"""
