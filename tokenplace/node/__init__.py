"""The composition root: builds a running peer out of its parts. Start at `node.open_node`.

`asking` is the half that finds donors and reaches them, `serving` the half that others reach; a
peer has one or both. Only here are parts that do not know each other put together.
"""
