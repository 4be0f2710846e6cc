"""The command `functa explore`."""

import argparse
import logging
import os
import signal
import socket
import sys
import tempfile

from functa.runtime.errors import UserError, as_user_errors

DESCRIPTION = """Serves a local page to explore a run: its functaset, its field, its generator.

    functa explore runs/digits
    functa explore runs/digits --port 7000 --data-dir /data

The command prints the address of the page. Only programs on this machine can connect, and nothing
is sent elsewhere. Ctrl-C or SIGTERM ends the command with exit status 0."""
_HOST = "127.0.0.1"
_PORTS = range(6106, 6206)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory, or a released model")
    parser.add_argument("--port", type=int, metavar="N", help="default: first free one from 6106")
    parser.add_argument("--data-dir", metavar="DIR", help="data sets; default: as in the config")


def run(args: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # Gradio writes every image that it shows to a file.
        with tempfile.TemporaryDirectory() as images, listen(args.port) as bound:
            os.environ |= {"GRADIO_TEMP_DIR": images, "GRADIO_ANALYTICS_ENABLED": "False"}
            serve(args.run, bound, data_dir=args.data_dir)
    except KeyboardInterrupt:
        sys.stdout.flush()
        os._exit(0)  # a thread that still computes would delay the end of the interpreter
    return 0


def listen(port: int | None) -> socket.socket:
    """A listening socket of 127.0.0.1 at `port`, or at the first free port from 6106 on.

    Raises:
      UserError: the port is in use or not allowed.
    """
    if port is not None and not 1 <= port <= 65535:
        raise UserError(f"--port={port} must be from 1 to 65535")
    problem = ""
    for number in _PORTS if port is None else [port]:
        try:
            return socket.create_server((_HOST, number))
        except OSError as error:
            problem = f"cannot listen on {_HOST}:{number} ({error}): choose another --port"
    raise UserError(problem)


def serve(run: str, bound: socket.socket, *, data_dir: str | None) -> None:
    """Serves the page until KeyboardInterrupt.

    Raises:
      UserError: the run cannot be shown, or Gradio is not installed.
    """
    try:
        import fastapi
        import gradio
        import uvicorn
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ModuleNotFoundError as error:
        raise UserError(
            f"the package {error.name} is not installed: run pip install 'gradio>=6.0,<7'"
        ) from error
    from functa.explore import page, session

    with as_user_errors():
        blocks = page.make_page(session.Session(run, data_dir=data_dir))
    app = fastapi.FastAPI()
    # Pages of other sites must not reach this server by a name that resolves to 127.0.0.1.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[_HOST, "localhost"])
    gradio.mount_gradio_app(app, blocks, path="/", css=page.CSS, footer_links=[], run_history=False)
    print(f"http://{_HOST}:{bound.getsockname()[1]}/ shows {run}; Ctrl-C ends it", flush=True)
    config = uvicorn.Config(app, log_level=logging.CRITICAL, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[bound])
