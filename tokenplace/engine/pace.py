"""How long a step takes, and what follows from it. Start at `Pace`, then `ThreadTuner`.

Pure: seconds are arguments. A step of the worker computes some tokens of prompts and the next token
of some sequences. `Pace` learns how long that takes here and now, and says how many prompt tokens
the next step may hold: with too many, running streams stall and a cancelled prompt goes on.
`ThreadTuner` finds how many threads are fastest while other programs want the same cores.

Differs from what one would expect: small chunks of a prompt cost nothing on a CPU (64 to 512 tokens
a step were equally fast), so time alone decides; and one thread fewer can be three times faster,
because at the end of every operation all wait for the one that was interrupted.
"""

from __future__ import annotations

from math import ceil
from typing import Final

from tokenplace import defaults

_MAX_TIMES: Final = 4.0  # the usual time: when a step takes more, it is not for its threads
_NEARLY: Final = 0.8  # a step may take so much longer for what is worth it
_OUTLIER: Final = 3.0  # a step counts as so many times the expected at most: the laptop slept
# While only steps with one number of streams were seen, half of their time is taken to be what any
# step costs. Steps that differ outweigh that soon: it counts as a spread of a seventh.
_PRIOR_FIXED_SHARE: Final = 0.5
_PRIOR_VARIANCE: Final = 0.02
# Of a step with prompt tokens, at least so much is theirs, whatever is thought of the rest. Where
# the rest is thought to take more than that, it is believed a little less after each such step:
# only steps without prompts can prove it. And it takes no longer than the whole, give or take.
_MIN_PROMPT_SHARE: Final = 0.25
_LESS_BELIEVED: Final = 0.97
_TOO_LONG: Final = 1.5


class StepTime:
    """Seconds of a step: `fixed + n_decode * per_stream + n_prompt * per_prompt_token`.

    The first two are a line through the steps without prompts, by least squares; the third is what
    prompts add to it. All fade: after one step, what was known before weighs `memory` as much. So
    changes of the machine, and of how far sequences must look back, are followed.
    """

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._weight = self._n = self._nn = self._s = self._ns = 0.0  # sums over decode steps
        self._prompt_tokens = self._prompt_seconds = 0.0

    def note(self, n_prompt: int, n_decode: int, seconds: float) -> None:
        """Count a step in."""
        if seconds <= 0:
            return  # of a coarse clock
        expected = self.expected(n_prompt, n_decode)
        if expected > 0:
            seconds = min(seconds, _OUTLIER * expected)
        if n_prompt:
            self._note_prompt(n_prompt, n_decode, seconds)
        else:
            self._note_decode(n_decode, seconds)

    def expected(self, n_prompt: int, n_decode: int) -> float:
        """Seconds of such a step; 0 while unknown."""
        if n_prompt and self._prompt_tokens == 0:
            return 0.0
        return self.without_prompt(n_decode) + n_prompt * self.per_prompt_token

    @property
    def per_prompt_token(self) -> float:
        """Seconds that one prompt token adds to a step; 0 while unknown."""
        return self._prompt_seconds / self._prompt_tokens if self._prompt_tokens > 0 else 0.0

    def without_prompt(self, n_decode: int) -> float:
        """Seconds of a step with no prompt in it; 0 while unknown."""
        if self._weight == 0:
            return 0.0
        mean_n, mean_s = self._n / self._weight, self._s / self._weight
        prior = _PRIOR_VARIANCE * mean_n**2
        prior_slope = (1 - _PRIOR_FIXED_SHARE) * mean_s / mean_n
        variance = self._nn / self._weight - mean_n**2 + prior
        covariance = self._ns / self._weight - mean_n * mean_s + prior * prior_slope
        slope = min(max(covariance / variance, 0.0), mean_s / mean_n)
        return mean_s + slope * (n_decode - mean_n)

    def scale(self, factor: float) -> None:
        """From now on every step takes so many times as long."""
        self._scale_decode(factor)
        self._prompt_seconds *= factor

    def _note_prompt(self, n_prompt: int, n_decode: int, seconds: float) -> None:
        rest = self.without_prompt(n_decode)
        if rest > _TOO_LONG * seconds:
            self._scale_decode(seconds / rest)
            rest = seconds
        share = max(seconds - rest, seconds * _MIN_PROMPT_SHARE)
        self._prompt_tokens = self._prompt_tokens * self._memory + n_prompt
        self._prompt_seconds = self._prompt_seconds * self._memory + share
        if rest > seconds * _MIN_PROMPT_SHARE:
            self._scale_decode(_LESS_BELIEVED)

    def _note_decode(self, n_decode: int, seconds: float) -> None:
        self._weight = self._weight * self._memory + 1
        self._n = self._n * self._memory + n_decode
        self._nn = self._nn * self._memory + n_decode**2
        self._s = self._s * self._memory + seconds
        self._ns = self._ns * self._memory + n_decode * seconds

    def _scale_decode(self, factor: float) -> None:
        self._s *= factor
        self._ns *= factor


class Pace:
    """What steps take on this machine at the moment, and what may be asked of the next."""

    _MEMORY: Final = 0.9  # ten steps back counts a third

    def __init__(self) -> None:
        self._time = StepTime(self._MEMORY)

    def note(self, n_prompt: int, n_decode: int, seconds: float) -> None:
        """Count a step in: so many prompt tokens, and so many sequences that got one token."""
        self._time.note(n_prompt, n_decode, seconds)

    def chunk(self, n_decode: int, step_s: float = defaults.PREFILL_STEP_S) -> int:
        """Prompt tokens for the next step, beside so many sequences that decode in it.

        The step should take `step_s`. Where it takes half of that or more without any prompt, it
        may take twice as long: streams slow down by half, and prompts still move.
        """
        per_token = self._time.per_prompt_token
        if per_token == 0:
            return defaults.FIRST_PREFILL_CHUNK
        without = self._time.without_prompt(n_decode)
        wanted = max(step_s - without, without) / per_token
        if defaults.TILED_CHUNK * _NEARLY <= wanted < defaults.TILED_CHUNK:
            wanted = defaults.TILED_CHUNK
        return int(min(max(wanted, defaults.MIN_PREFILL_CHUNK), defaults.MAX_PREFILL_CHUNK))

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens a second when nothing else runs; 0 while unknown."""
        seconds = self._time.expected(self.chunk(0), 0)
        return self.chunk(0) / seconds if seconds > 0 else 0.0

    @property
    def decode_tps(self) -> float:
        """Tokens a second of one stream alone; 0 while unknown.

        So an idle donor's figure does not stay low because many ran when it was last measured.
        """
        return self.stream_tps(0)

    def stream_tps(self, n_beside: int) -> float:
        """Tokens a second of one more stream beside so many; 0 while unknown."""
        seconds = self._time.without_prompt(n_beside + 1)
        return 1 / seconds if seconds > 0 else 0.0

    def seconds_for_prefill(self, n_tokens: int, n_beside: int = 0) -> float:
        """How long a prompt of so many would take beside so many streams; 0 while unknown."""
        per_token = self._time.per_prompt_token
        if per_token == 0:
            return 0.0
        n_steps = ceil(n_tokens / self.chunk(n_beside))
        return n_steps * self._time.without_prompt(n_beside) + n_tokens * per_token

    def seconds_held_up(self, n_tokens: int) -> float:
        """How much later a stream ends if a prompt of so many is read beside it; 0 if unknown."""
        return n_tokens * self._time.per_prompt_token

    def seconds_for_decode(self, n_tokens: int, n_beside: int = 0) -> float:
        """How long so many tokens of one answer would take beside so many; 0 while unknown."""
        return n_tokens * self._time.without_prompt(n_beside + 1)


class ThreadTuner:
    """How many threads the next steps should use: at most `n_threads`, at least one.

    It tries another number for some steps and stays where steps get faster: fewer as soon as steps
    take long, and both ways from time to time. What trying costs is paid from a budget, a share of
    all the time spent, so it is bounded whatever is tried. All times are in usual times: what such
    a step usually takes with as many threads; so any mixture of steps will do.
    """

    _USUAL_MEMORY: Final = 0.99  # a hundred steps back count a third
    _RECENT_GAIN: Final = 0.1  # of how it is now
    _SETTLE_STEPS: Final = 8  # at one number, before another is tried
    _SLOW: Final = 1.5  # somebody else uses the machine
    _FEWER_IF_BELOW: Final = 0.8  # of the present time: chance does not reach that
    _MORE_IF_BELOW: Final = 0.95  # in doubt what the donor's owner allowed is right
    _BUDGET: Final = 0.015  # of all time
    # Trials in vain make trials rarer by so much, so that they cost 0.2 %; but not while it uses
    # fewer threads than it may: soon after the machine is free all should be used.
    _MAX_RARITY: Final = 8
    # A hopeless trial costs 8: four steps, each three times as long; what costs more is given up.
    # On a machine that is four times slower it costs as much more, and is needed at once: so none
    # is made without need before so much is saved. It begins with half, as it may be busy already.
    _TRIAL_COST: Final = 8.0
    _RESERVE: Final = 32.0

    def __init__(self, n_threads: int) -> None:
        self._max_threads = n_threads
        self._settled = n_threads
        self._usual = StepTime(self._USUAL_MEMORY)
        self._recent = 1.0  # how long steps take now
        self._n_settled = 0
        self._budget = self._RESERVE / 2
        self._rarity = 1
        self._trial: Trial | None = None
        self._more_by = 1  # doubled while more are better
        self._is_half_next = True  # of those tried downwards
        self._was_fewer = False  # tried last, without need

    @property
    def n_threads(self) -> int:
        """What the next step should use."""
        if self._trial is None or self._trial.is_before:
            return self._settled
        return self._trial.n_threads

    def note(self, n_prompt: int, n_decode: int, seconds: float) -> None:
        """Count in a step that was computed with `n_threads`."""
        usual_s = self._usual.expected(n_prompt, n_decode)
        if self._trial is not None:
            if usual_s > 0:
                self._trial.note(seconds / usual_s)
                self._judge(self._trial)
            return
        self._usual.note(n_prompt, n_decode, seconds)
        self._n_settled += 1
        if usual_s == 0:
            return
        taken = seconds / usual_s
        self._recent += self._RECENT_GAIN * (min(taken, _MAX_TIMES) - self._recent)
        rarity = self._rarity if self._settled == self._max_threads else 1
        self._budget = min(self._budget + self._BUDGET / rarity * taken, self._RESERVE)
        if self._n_settled >= self._SETTLE_STEPS:
            self._try_another()

    def _try_another(self) -> None:
        can_fewer, can_more = self._settled > 1, self._settled < self._max_threads
        is_needed = can_fewer and self._recent > self._SLOW
        if is_needed and self._budget >= self._TRIAL_COST * self._recent:
            self._trial = Trial(self._fewer)
        elif (can_fewer or can_more) and self._budget == self._RESERVE:
            self._was_fewer = can_fewer and not (can_more and self._was_fewer)
            more = min(self._settled + self._more_by, self._max_threads)
            self._trial = Trial(self._fewer if self._was_fewer else more)

    @property
    def _fewer(self) -> int:
        """Half of them and one less in turns: with three of eight cores taken seven threads are as
        slow as eight, but four are not, and from there the way up is short.
        """
        return (self._settled + 1) // 2 if self._is_half_next else self._settled - 1

    def _judge(self, trial: Trial) -> None:
        """Stay there, go back, or go on trying."""
        is_decided = trial.is_whole or trial.is_hopeless or trial.is_obvious
        if not is_decided and trial.cost <= min(self._budget, self._TRIAL_COST):
            return
        is_fewer = trial.n_threads < self._settled
        limit = self._FEWER_IF_BELOW if is_fewer else self._MORE_IF_BELOW
        if is_decided and trial.after < limit * trial.before:
            self._more_by = 1 if is_fewer else self._more_by * 2
            self._settled = trial.n_threads
            self._usual.scale(trial.after)
            self._recent = 1.0
            self._rarity = 1
            self._is_half_next = True
        else:
            self._rarity = min(self._rarity * 2, self._MAX_RARITY)
            self._more_by = 1
            self._is_half_next ^= is_fewer
        self._budget -= max(trial.cost, 0.0)
        self._trial = None
        self._n_settled = 0


class Trial:
    """Steps as before, and steps with another number of threads. Times are in usual times.

    They take turns, a b b a, because what is computed changes meanwhile: a prompt has been read,
    and steps are shorter since. One after the other would take that for the threads' doing.
    """

    _STEPS: Final = 16  # of each kind; with 30 % of noise a mean of them is known to 4 %
    _FEW_STEPS: Final = 3  # are enough, if they take so many times as long:
    _HOPELESS: Final = 1.5
    _OBVIOUS: Final = 0.5

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self.cost = 0.0  # how much longer these steps took than they would have without it
        self._before: list[float] = []
        self._after: list[float] = []

    def note(self, taken: float) -> None:
        """Count a step in."""
        if self.is_before:
            self._before.append(min(taken, _MAX_TIMES))
        else:
            self._after.append(min(taken, _MAX_TIMES))
            self.cost += taken - self.before

    @property
    def is_before(self) -> bool:
        """Does the next step use as many threads as before?"""
        return (len(self._before) + len(self._after)) % 4 in (0, 3)

    @property
    def is_whole(self) -> bool:
        """Are there as many steps as needed?"""
        return len(self._after) >= self._STEPS and len(self._before) >= self._STEPS

    @property
    def is_hopeless(self) -> bool:
        """Do steps take so long with it that a few suffice?"""
        return self._has_few and self.after > self._HOPELESS * self.before

    @property
    def is_obvious(self) -> bool:
        """Are steps so short with it that a few suffice?"""
        return self._has_few and self.after < self._OBVIOUS * self.before

    @property
    def _has_few(self) -> bool:
        return min(len(self._after), len(self._before)) >= self._FEW_STEPS

    @property
    def before(self) -> float:
        """Mean time of a step with as many threads as before."""
        return sum(self._before) / len(self._before)

    @property
    def after(self) -> float:
        """Mean time of a step with the other number."""
        return sum(self._after) / len(self._after)
