"""Which models a peer knows by name, and their files on this machine.

Start at `names.ModelNames` (what an app may ask for) and `store.ModelStore` (where the bytes are
and how they get here). `catalogue` is what the package knows, `table` what the user added.
Importing this package costs nothing: only `store` brings trio with it, and only its child processes
the Hugging Face client.
"""
