"""The next window is made while a step runs."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from limbeck.signals import Batch


class Ahead:
    """Makes windows by their number, the next one in a thread beside the step that works on this one.

    A window is a pure function of its number, so nothing changes but the time: a checkpoint does not know of it, and a window that was made in vain
    is made again. What goes wrong in the thread is raised where that window is asked for.
    """

    def __init__(self, make: Callable[[int], Batch]):
        self.make = make
        self.worker: ThreadPoolExecutor | None = None
        self.next: tuple[int, Future[Batch]] | None = None

    def take(self, number: int, more: bool) -> Batch:
        """Window `number`; the one after it is begun where there will be `more`."""
        (begun, future), self.next = self.next or (None, None), None
        made = future.result() if future is not None and begun == number else self.make(number)
        if more:
            self.worker = self.worker or ThreadPoolExecutor(1, "limbeck-window")
            self.next = number + 1, self.worker.submit(self.make, number + 1)
        elif self.worker is not None:
            self.worker.shutdown(wait=False)
            self.worker = None
        return made
