"""How a request waits for its answers: told by the scheduler's thread, given up where its client hangs up."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from starlette.types import Receive

from offramp.serve.bodies import HungUpError
from offramp.serve.contract import Answer, RefusedError


class Watched:
    """While entered, the task is cancelled where the client hangs up, and `HungUpError` is raised."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
        self._watch = asyncio.ensure_future(self._receive())
        self._watch.add_done_callback(self._hung_up)
        self._is_gone = False

    def _hung_up(self, watch: "asyncio.Future[Any]") -> None:
        if not watch.cancelled() and self._task is not None:
            self._is_gone = True
            self._task.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._watch.remove_done_callback(self._hung_up)
        self._watch.cancel()
        if self._is_gone and self._task is not None:
            self._task.uncancel()
            raise HungUpError


class Outcomes:
    """Gives futures of the loop what the scheduler's thread says, and wakes the loop once for all of a batch."""

    def __init__(self) -> None:
        self._told: deque[tuple[asyncio.Future[Answer | RefusedError], Answer | RefusedError]] = deque()
        self._is_woken = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def into(self, future: "asyncio.Future[Answer | RefusedError]") -> Callable[[Answer | RefusedError], None]:
        """A callback for the scheduler's thread."""
        loop = future.get_loop()
        if loop is not self._loop:  # the one before may have ended between being woken and looking
            self._loop, self._is_woken = loop, False

        def on_done(outcome: Answer | RefusedError) -> None:
            self._told.append((future, outcome))
            if not self._is_woken:
                self._is_woken = True
                loop.call_soon_threadsafe(self._settle)

        return on_done

    def _settle(self) -> None:
        self._is_woken = False  # before looking: what is told from now on wakes anew
        while self._told:
            future, outcome = self._told.popleft()
            if not future.done():
                future.set_result(outcome)
