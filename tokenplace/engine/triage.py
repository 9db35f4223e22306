"""Who killed the worker, and in which order the others try the next one. Start at `Triage.crash`.

Pure. With continuous batching a crash has as many suspects as the step had requests. Each of them
is tried again on its own, the newest first, since most requests that kill do so when they begin:
who kills a worker on trial is guilty, and then everybody else is believed. So one such request
costs two workers, and one that was computed alone costs one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class Triage:
    """Requests between two workers, by their numbers.

    Everybody in flight is either in the worker, or waits here. `on_trial` is in the worker, beside
    those who have passed.
    """

    def __init__(self) -> None:
        self.on_trial: int | None = None
        self._suspects: deque[int] = deque()
        self._believed: list[int] = []

    @property
    def is_over(self) -> bool:
        """Is nobody suspected, and does nobody wait? Then newcomers may go to the worker."""
        return self.on_trial is None and not self._suspects and not self._believed

    def crash(
        self, in_flight: Iterable[int], computing: frozenset[int], *, is_own_fault: bool
    ) -> int | None:
        """The worker died. The guilty one, if that is known; all others wait for `take` now.

        in_flight: oldest first. computing: whose step it was; among them may be some that have left
        a moment ago. is_own_fault: see `ChildDied`; who is computed alone when somebody ends the
        worker from outside is suspected only.
        """
        waiting = [*in_flight]
        seen = [request for request in waiting if request in computing]
        guilty = None
        if self.on_trial in seen:
            guilty = self.on_trial
        elif is_own_fault and seen and len(computing) == 1:
            guilty = seen[0]
        suspects: list[int] = []
        if guilty is None:
            before = [self.on_trial, *self._suspects]
            suspects = [*reversed(seen)]
            suspects += [r for r in waiting if r in before and r not in seen]
        self.on_trial = None
        self._suspects = deque(suspects)
        self._believed = [r for r in waiting if r != guilty and r not in suspects]
        return guilty

    def take(self) -> list[int]:
        """Who goes to the worker now: one suspect; or, when there is none left, everybody."""
        if self.on_trial is not None:
            return []
        if self._suspects:
            self.on_trial = self._suspects.popleft()
            return [self.on_trial]
        believed, self._believed = self._believed, []
        return believed

    def leave(self, request: int) -> None:
        """It has passed its trial, or has ended."""
        if request == self.on_trial:
            self.on_trial = None
        elif request in self._suspects:
            self._suspects.remove(request)
        elif request in self._believed:
            self._believed.remove(request)
