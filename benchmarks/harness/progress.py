"""What is done, and how long the rest will take."""

import itertools
import time
from collections.abc import Callable


def counted(say: Callable[[str], None], total: int) -> Callable[[str], None]:
    """Return a `say` to be called as each of a number of things is done.

    It adds how many are, and what the others take if they take as long: to be read as
    the first guess that it is, because what is on the disk takes no time.
    """
    begin, done = time.perf_counter(), itertools.count(1)

    def tell(text: str) -> None:
        number = next(done)
        left = (time.perf_counter() - begin) / number * max(total - number, 0)
        shown = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min"
        say(f"{text} ({number} of {total}; about {shown} left)")

    return tell
