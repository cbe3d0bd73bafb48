"""`offramp serve`: answer images over HTTP, each from as early an exit as the run's policies let it leave."""

import importlib.util
import ipaddress
import os
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from offramp.checks import ABOVE_0, SHARE, number, whole
from offramp.commands.options import AnyBackend, File, Flag, OnDevice, in_threads
from offramp.errors import OfframpError, UsageError
from offramp.terminal import escaped, say

if TYPE_CHECKING:
    from offramp.serve.service import Service

TOKEN = "OFFRAMP_TOKEN"
_LEAST_TOKEN = 16  # characters
_NOT_NEGATIVE = number("of at least 0", lambda value: value >= 0)


@dataclass(frozen=True, kw_only=True)
class ServeOptions(OnDevice):
    """Answer images over HTTP, with deadlines and honest refusals.

    POST an image to /v1/predict; open / in a browser for a page to play with. docs/serve.md has the rest.

    SIGTERM and Ctrl-C answer what was accepted, then end; SIGHUP opens the run and its policies anew.
    """

    policy: File = None
    """Thresholds, as `offramp policy` and `offramp certify` write them. Default: RUN/ladder.json, then RUN/policy.json;
    without either the last exit answers every image."""
    backend: AnyBackend = "auto"
    """What runs the network.
    auto: as `offramp bench` found here, else the first of openvino, onnxruntime and torch that is installed."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own lets others in: set a token."""
    port: Annotated[int, whole(0, 65535)] = 8000
    """Port to listen on; 0: any that is free."""
    allow_host: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")]] = ()
    """A name under which it may be asked (the Host header), such as that of a proxy before it.
    On 127.0.0.1 localhost is allowed anyway and others are refused; elsewhere all are, unless one is named."""
    token_file: File = None
    """A file with a token that requests have to bring (Authorization: Bearer).
    Or the variable OFFRAMP_TOKEN; there is no option for the token itself, because other users see command lines."""
    max_wait_ms: Annotated[float, _NOT_NEGATIVE] = 2
    """Milliseconds that an image may wait, in all, for others to run with."""
    max_waiting: Annotated[int, whole(1, 10**6)] = 256
    """Images that may be under way; more are refused (429)."""
    within_ms: Annotated[float, _NOT_NEGATIVE] = 30
    """Images are refused (429), though there are places, where those before them are expected to take longer;
    about half of the time in which 99 % are to be answered. 0: never."""
    audit: Annotated[float, SHARE] = 0.01
    """Share of the images that left early that also run to the end, for the guard against drift."""
    audit_level: Annotated[float, number("between 0 and 1", lambda value: 0 < value < 1)] = 0.01
    """Probability that the guard ever raises a false alarm."""
    safe_on_alarm: Flag = False
    """After an alarm let no image leave early any more."""
    grace: Annotated[float, _NOT_NEGATIVE] = 30
    """Seconds that answering what was accepted may take at the end."""
    max_body_mb: Annotated[float, ABOVE_0] = 16
    """Megabytes of a request."""
    max_megapixels: Annotated[float, ABOVE_0] = 25
    """Million pixels of an image; one that has more is not decoded."""
    max_images: Annotated[int, whole(1, 10**4)] = 64
    """Images of one request."""
    max_connections: Annotated[int, whole(1, 10**5)] = 512
    """Connections at once."""
    request_seconds: Annotated[float, ABOVE_0] = 30
    """Seconds that a request may take to come in, and an answer to be read."""
    decoders: Annotated[int, whole(1, 256)] = 2
    """Threads that decode images."""

    def main(self) -> None:
        serve(self)


@in_threads
def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT; where it listens is printed once it is ready.

    Raises:
        UsageError: No run or an unfinished one, policies for other weights, an address that is in use, no token in the
            file.
        OfframpError: Damaged files; accepted images that were not answered within `grace`.
    """
    _check_installed()
    from offramp.serve.server import Server, address, listen

    token = _token(options)
    if token is None and not _is_loopback(options.host):
        say(f"Everybody who reaches {options.host} may ask: there is no token (--token-file, or {TOKEN}).")
    with listen(options.host, options.port, options.max_connections) as listening:
        where = address(listening)
        service = open_service(options, token)
        for note in service.notes:
            say(note)

        def ready() -> None:
            served = service.scheduler.served
            if options.json:
                facts = {"address": where, "run": str(options.run), "fingerprint": served.fingerprint}
                print(dumps({**facts, "rungs": len(served.ladder), "pid": os.getpid()}), flush=True)
            else:
                print(escaped(f"{options.run} is served at {where}"), flush=True)

        server = Server(service.app, service.scheduler, grace=options.grace, reload=service.reload, on_ready=ready)
        server.run(sockets=[listening])
    if not server.all_answered:
        raise OfframpError(f"Some accepted images were not answered within --grace {options.grace:g} seconds.")


def open_service(options: ServeOptions, token: str | None = None) -> "Service":
    """The application and the scheduler, without a server around them: for one of your own.

    Raises:
        UsageError: See `serve`.
    """
    _check_installed()
    from offramp.serve.gate import LOOPBACK, Gate
    from offramp.serve.limits import Limits
    from offramp.serve.service import Service

    seconds = options.request_seconds
    limits = Limits(
        max_body=round(options.max_body_mb * 2**20),
        max_megapixels=options.max_megapixels,
        max_images=options.max_images,
        max_connections=options.max_connections,
        head_seconds=min(10, seconds),
        body_seconds=seconds,
        write_seconds=seconds,
    )
    hosts = (*options.allow_host, *(LOOPBACK if _is_loopback(options.host) else ()))
    return Service(
        options.run,
        policy=options.policy,
        backend=None if options.backend == "auto" else options.backend,
        device=options.device,
        max_wait_ms=options.max_wait_ms,
        max_waiting=options.max_waiting,
        within_ms=options.within_ms or None,
        audit=options.audit,
        level=options.audit_level,
        safe_on_alarm=options.safe_on_alarm,
        limits=limits,
        gate=Gate(token, hosts),
        decoders=options.decoders,
        allow_code=options.allow_code,
    )


def _check_installed() -> None:
    for name in ("starlette", "uvicorn", "httptools", "python_multipart", "prometheus_client"):
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"Serving needs {name}, which is not installed: pip install 'offramp[serve]'.")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token(options: ServeOptions) -> str | None:
    """The token that requests have to bring; None: none has to."""
    if options.token_file is not None:
        path, source = Path(options.token_file).expanduser(), str(options.token_file)
        try:
            token = path.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise UsageError(f"The token in {source} cannot be read: {error}.") from error
    elif TOKEN in os.environ:
        token, source = os.environ[TOKEN].strip(), f"the variable {TOKEN}"
    else:
        return None
    if len(token) < _LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"The token in {source} must have at least {_LEAST_TOKEN} printable ASCII characters and no space: "
            "`openssl rand -hex 32` makes one."
        )
    return token
