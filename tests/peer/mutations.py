"""Right bytes made wrong, as hypothesis strategies: damage that gets deeper into a decoder than
random bytes do.
"""

from __future__ import annotations

from hypothesis import strategies as st

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats()
    | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
"""Whatever msgpack can hold."""


@st.composite
def mutated(draw: st.DrawFn, right: bytes) -> bytes:
    """`right` with a part of it removed, replaced, repeated or moved to its end."""
    start, end = sorted((draw(st.integers(0, len(right))), draw(st.integers(0, len(right)))))
    part = right[start:end]
    put = draw(st.sampled_from([b"", part + part]) | st.binary(max_size=12))
    tail = draw(st.sampled_from([b"", part, right]))
    return right[:start] + put + right[end:] + tail


@st.composite
def with_a_byte_changed(draw: st.DrawFn, right: bytes) -> bytes:
    changed = bytearray(right)
    changed[draw(st.integers(0, len(right) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)


def damaged(right: bytes) -> st.SearchStrategy[bytes]:
    """Either; sometimes `right` itself."""
    return mutated(right) | with_a_byte_changed(right)
