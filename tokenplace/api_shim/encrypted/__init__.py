"""The encrypted form of the API: token.place's, byte for byte. Start at
`completions`.

It protects between an app and its own peer, and ends there: the peer opens the request and seals it
anew to a donor, who reads it. `envelope` is the cryptography, `client_key` reads an app's key,
`own_key` is the peer's, `routes` tells its public half.
"""
