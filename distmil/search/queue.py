"""The queue of a search: every setting once, lost trials again, and none that is over. Knows nothing of Ray."""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from distmil.search.samplers import OptunaSampler
from distmil.search.space import Task, TrialRecord, Values


class TrialQueue:
    """Hands out the tasks to train, and takes in how they end."""

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        known: Mapping[str, TrialRecord],
        max_lost: int,
        sampler: OptunaSampler | None = None,
        make: Callable[[Values], Task] | None = None,
        count: int | None = None,
    ) -> None:
        """Begin with the tasks that are known.

        Args:
            tasks: In order, all different.
            known: Records of earlier calls, by task.
            max_lost: How often a lost task is tried again.
            sampler: Draws the settings of more tasks.
            make: Makes a task of a setting.
            count: Tasks in all; None: the given ones.
        """
        self._numbers = {task.key: number for number, task in enumerate(tasks)}
        self.over = [
            replace(known[key], number=number)
            for key, number in self._numbers.items()
            if key in known and known[key].is_over
        ]
        done = {record.task.key for record in self.over}
        self._waiting = deque(task for task in tasks if task.key not in done)
        self._running: set[str] = set()
        self._losses: Counter[str] = Counter()
        self._max_lost, self._sampler, self._make = max_lost, sampler, make
        self.total = len(tasks) if count is None else count

    @property
    def is_done(self) -> bool:
        """Return whether everything is over."""
        return not self._waiting and not self._running and len(self._numbers) >= self.total

    def number(self, task: Task) -> int:
        """Look up a task's place in the order."""
        return self._numbers[task.key]

    def next(self) -> Task | None:
        """Hand out the next task, None if there is none now."""
        if self._waiting:
            task = self._waiting.popleft()
        elif self._sampler is not None and self._make is not None and len(self._numbers) < self.total:
            make, numbers = self._make, self._numbers
            task = make(self._sampler.ask(lambda values: make(values).key not in numbers))
            numbers[task.key] = len(numbers)
        else:
            return None
        self._running.add(task.key)
        return task

    def end(self, task: Task, score: float | None) -> None:
        """Note that a task is over, or failed for good."""
        self._running.discard(task.key)
        if self._sampler is not None:
            self._sampler.tell(task.values, score)

    def lose(self, task: Task) -> bool:
        """Note that a task's process or node was lost, and return whether the task comes next, to be tried again."""
        self._losses[task.key] += 1
        if self._losses[task.key] > self._max_lost:
            return False
        self._running.discard(task.key)
        self._waiting.appendleft(task)
        return True
