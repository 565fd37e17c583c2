"""The queue of a search: every setting once, lost trials again, and none that is over. Knows nothing of Ray."""

from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from distmil.search.samplers import OptunaSampler
from distmil.search.space import Values
from distmil.search.trial import Trial


class TrialQueue:
    """Hands out the trials to train, and takes in how they end."""

    def __init__(
        self,
        trials: Sequence[Trial],
        *,
        known: Mapping[str, Trial],
        max_lost: int,
        sampler: OptunaSampler | None = None,
        make: Callable[[Values], Trial] | None = None,
        count: int | None = None,
    ) -> None:
        """Begin with the trials that are known.

        Args:
            trials: In order, all different.
            known: Trials of earlier calls, by key.
            max_lost: How often a lost trial is tried again.
            sampler: Draws the settings of more trials.
            make: Makes a trial of a setting.
            count: Trials in all; None: the given ones.
        """
        numbered = [replace(trial, number=number) for number, trial in enumerate(trials)]
        done = {key for key, trial in known.items() if trial.is_over}
        self._keys = {trial.key for trial in numbered}
        self.over = [replace(known[trial.key], number=trial.number) for trial in numbered if trial.key in done]
        self._waiting = deque(trial for trial in numbered if trial.key not in done)
        self._running: set[str] = set()
        self._losses: Counter[str] = Counter()
        self._max_lost, self._sampler, self._make = max_lost, sampler, make
        self.total = len(trials) if count is None else count

    @property
    def is_done(self) -> bool:
        """Return whether everything is over."""
        return not self._waiting and not self._running and len(self._keys) >= self.total

    def next(self) -> Trial | None:
        """Hand out the next trial, None if there is none now."""
        if self._waiting:
            trial = self._waiting.popleft()
        elif self._sampler is not None and self._make is not None and len(self._keys) < self.total:
            make, keys = self._make, self._keys
            trial = make(self._sampler.ask(lambda values: make(values).key not in keys))
            trial = replace(trial, number=len(keys))
            keys.add(trial.key)
        else:
            return None
        self._running.add(trial.key)
        return trial

    def end(self, trial: Trial, score: float | None) -> None:
        """Note that a trial is over, or failed for good."""
        self._running.discard(trial.key)
        if self._sampler is not None:
            self._sampler.tell(trial.values, score)

    def reopen(self, trials: Collection[Trial]) -> Trial | None:
        """Hand out the best of the trials that were ended early once more, if none was trained to its end.

        That can come to pass where a trial that led was lost, and fell behind those that it had ended.
        """
        stopped = [trial for trial in trials if trial.status == "stopped" and trial.score is not None]
        if not stopped or any(trial.status == "finished" for trial in trials):
            return None
        best = max(stopped, key=lambda trial: (trial.score or 0.0, -trial.number))
        self._waiting.append(best)
        return best

    def lose(self, trial: Trial) -> bool:
        """Note that a trial's process or node was lost, and return whether the trial comes next, to be tried again."""
        self._losses[trial.key] += 1
        if self._losses[trial.key] > self._max_lost:
            return False
        self._running.discard(trial.key)
        self._waiting.appendleft(trial)
        return True
