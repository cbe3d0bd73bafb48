"""uvicorn around the application: signals, a drain that answers what was accepted, limits on connections."""

import asyncio
import contextlib
import functools
import math
import resource
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any, cast

import uvicorn

from offramp.errors import OfframpError, UsageError
from offramp.serve.app import App
from offramp.serve.connection import Connection
from offramp.serve.contract import Schedules
from offramp.terminal import say, say_error

_FILES = 128  # descriptors beside those of connections
_LOOK = 0.02  # seconds between two looks at whether it is warm


def listen(host: str, port: int, max_connections: int) -> socket.socket:
    """A socket that listens; port 0: any that is free.

    Raises:
        UsageError: The address cannot be had, or the process may not have that many descriptors.
    """
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max_connections + _FILES
    if allowed != resource.RLIM_INFINITY and needed > allowed:
        if most != resource.RLIM_INFINITY and needed > most:
            raise UsageError(
                f"max-connections {max_connections} takes {needed} open files, and this process may have {most} "
                "(ulimit -n). Lower it, or raise the limit."
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=min(max_connections, 2048))
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UsageError(
            f"{host} port {port} cannot be listened on: {reason}. Choose another --host or --port."
        ) from error


def address(listening: socket.socket) -> str:
    """Where it is reached."""
    host, port, *_ = listening.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT, then answers what was accepted; a second one ends it at once.

    Args:
        app: Asked, with its limits.
        schedules: What it submits to; drained at the end.
        grace: Seconds that the end may take.
        reload: Called for SIGHUP; what it raises as an error of the user's is said, and the server goes on.
        on_ready: Called once the scheduler is warm.
    """

    def __init__(
        self,
        app: App,
        schedules: Schedules,
        *,
        grace: float = 30,
        reload: Callable[[], Awaitable[None]] | None = None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        protocol = functools.partial(
            Connection, limits=app.limits, refused=app.metrics.refused, turned_away=app.turned_away
        )
        config = uvicorn.Config(
            app,
            http=cast(type[asyncio.Protocol], protocol),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # its warnings are of every line that is not HTTP
            access_log=False,
            proxy_headers=False,  # a client behind a proxy on this machine is not this machine
            server_header=False,
            timeout_keep_alive=math.ceil(app.limits.idle_seconds),
            timeout_graceful_shutdown=math.ceil(grace) + 1,
        )
        super().__init__(config)
        self._app, self._schedules, self._grace = app, schedules, grace
        self._reload, self._on_ready = reload, on_ready
        self._tasks: set[asyncio.Task[None]] = set()
        self.all_answered = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """While it serves, signals are ours: uvicorn would kill the process with them after it has ended well."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers: dict[int, Any] = {signal.SIGTERM: self._stop, signal.SIGINT: self._stop}
        loop = asyncio.get_running_loop()
        if self._reload is not None:
            handlers[signal.SIGHUP] = lambda *_: loop.call_soon_threadsafe(self._start, self._reload_or_say())
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so once the scheduler is warm."""
        await super().startup(sockets)
        self._start(self._say_ready())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing more in, answer what is there, close."""
        self._app.is_draining = True
        drained = asyncio.get_running_loop().run_in_executor(None, self._schedules.drain, self._grace)
        await super().shutdown(sockets)
        self.all_answered = await drained
        for task in self._tasks:
            task.cancel()
        self._app.close()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            threading.Thread(target=self._schedules.drain, args=(0,), daemon=True).start()
        self.should_exit = True

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _say_ready(self) -> None:
        while not self._schedules.snapshot().is_ready:
            await asyncio.sleep(_LOOK)
        self._on_ready()

    async def _reload_or_say(self) -> None:
        assert self._reload is not None
        try:
            await self._reload()
            say(f"Loaded anew: {self._schedules.served.fingerprint[:12]} is served.")
        except (UsageError, OfframpError) as error:
            say_error(f"offramp: What was served is served on: {error}")
