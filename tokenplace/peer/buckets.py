"""Token buckets by key, in bounded memory. Pure. Start at `TokenBuckets.take`."""

from __future__ import annotations

from tokenplace import defaults


class TokenBuckets:
    """One bucket a key, full at first. `now` is on the caller's clock, in seconds.

    The keys used least recently are forgotten, so who wants a bucket refilled early must use
    `MAX_TOKEN_BUCKETS` other keys in between.
    """

    def __init__(self, capacity: float, tokens_per_s: float) -> None:
        self._capacity = capacity
        self._tokens_per_s = tokens_per_s
        self._levels: dict[str, tuple[float, float]] = {}  # tokens, and when; last used last

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, key: str, now: float) -> bool:
        """Take a token; False if there is none."""
        tokens = self._level(key, now)
        has_one = tokens >= 1
        self._set(key, tokens - has_one, now)
        return has_one

    def give_back(self, key: str, now: float) -> None:
        """Put a token back that was not needed."""
        self._set(key, self._level(key, now) + 1, now)

    def _level(self, key: str, now: float) -> float:
        tokens, at = self._levels.pop(key, (self._capacity, now))
        return min(self._capacity, tokens + (now - at) * self._tokens_per_s)

    def _set(self, key: str, tokens: float, now: float) -> None:
        if tokens >= self._capacity:
            return  # as good as unknown
        if len(self._levels) >= defaults.MAX_TOKEN_BUCKETS:
            del self._levels[next(iter(self._levels))]
        self._levels[key] = tokens, now
