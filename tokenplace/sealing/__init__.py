"""Sealing: a request only its donor can read, and an answer only its requester can. Start at
`request.py`, then `answer.py`.

Bytes in, bytes out; no I/O, no clock (`now` is an argument). All of the cryptography is
`cryptography`'s.
"""
