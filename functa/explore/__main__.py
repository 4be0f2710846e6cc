"""Serves a page to explore a run, to this machine alone.

    python -m functa.explore runs/digits [--port N] [--data_dir DIR]

It prints its address when the page is there and ends with Ctrl-C or SIGTERM, exit status 0. What cannot be served is
told before: exit status 2.
"""

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence

_HOST = "127.0.0.1"
_FIRST_PORT, _PORTS = 6106, 100  # one hundred after TensorBoard's
_PATIENCE = 1  # seconds for answers under way when it ends


def listen(port: int | None) -> socket.socket:
    """A socket on this machine's own address; without a port on the first free one from 6106 on.

    Raises:
      ValueError: it is taken, or not allowed.
    """
    ports = range(_FIRST_PORT, _FIRST_PORT + _PORTS) if port is None else [port]
    problem = ""
    for number in ports:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((_HOST, number))
            bound.listen()  # where another one already does, only this is refused
            return bound
        except OSError as error:
            bound.close()
            problem = f"port {number} of {_HOST} cannot be used ({error.strerror}); name another by --port"
    raise ValueError(problem)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: a port is a whole number from 1 to 65535")
    return int(text)


def serve(args: argparse.Namespace) -> None:
    """Until it is interrupted.

    Raises:
      ValueError: a run or port that cannot be served.
    """
    try:
        import uvicorn

        from functa.explore import web
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("anyio", "starlette", "uvicorn"):
            raise
        raise ValueError(
            f"the package {package} is not installed: launch/explore.sh installs it, or pip install "
            "starlette uvicorn"
        ) from error
    from functa.explore.explorer import Explorer
    from functa.explore.opened import open_run

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(
                f"http://{_HOST}:{bound.getsockname()[1]}/ shows {args.run}; Ctrl-C ends it",
                flush=True,
            )

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # Who ends it knows that what is under way is cut off.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            await super().shutdown(sockets)

    with listen(args.port) as bound:
        app = web.make_app(Explorer(open_run(args.run, data_dir=args.data_dir)))
        config = uvicorn.Config(
            app, log_level="warning", lifespan="off", timeout_graceful_shutdown=_PATIENCE
        )
        Server(config).run(sockets=[bound])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m functa.explore",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="directory of a run with its field and functaset")
    parser.add_argument(
        "--port", type=_port, metavar="N", help="default: the first free one from 6106"
    )
    parser.add_argument("--data_dir", metavar="DIR", help="where the images lie now")
    args = parser.parse_args(argv)
    # The server hands a signal on when it has ended: both kinds end here.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve(args)
    except KeyboardInterrupt:
        sys.stdout.flush()
        sys.stderr.flush()
        # A program that is still computing would hold the interpreter up, or fall with it.
        os._exit(0)
    except (ValueError, OSError, MemoryError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
