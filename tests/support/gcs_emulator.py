"""An object store on 127.0.0.1 in memory: gcp-storage-emulator with additions.

python -m tests.support.gcs_emulator BUCKET      prints its address and serves until it is killed

A POST to /away/SECONDS starts an outage: half of the requests are then answered with 503, for the
others the connection is closed.
"""

import functools
import http.server
import re
import sys
import time

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets, objects
from gcp_storage_emulator.storage import Storage

_ABSENT = http.HTTPStatus.NOT_FOUND
_download, _insert = objects.download, objects.insert


def download(request, response, storage, *args, **kwargs):
    """Adds the generation and ranges that count from the end, for TensorStore."""
    place = request.params["bucket_name"], request.params["object_id"]
    try:
        response["x-goog-generation"] = storage.get_file_obj(*place)["generation"]
        size = len(storage.get_file(*place))
    except NotFound:
        response.status = _ABSENT
        return
    headers = request._request_handler.headers
    if match := re.fullmatch(r"bytes=-(\d+)", headers.get("range", "")):
        headers.replace_header("range", f"bytes={max(0, size - int(match[1]))}-")
    _download(request, response, storage, *args, **kwargs)


def insert(request, response, storage, *args, **kwargs):
    """Adds the precondition on the generation; 0: the object must not exist."""
    wanted = request.query.get("ifGenerationMatch")
    if wanted and "name" in request.query:
        try:
            place = request.params["bucket_name"], request.query["name"][0]
            generation = storage.get_file_obj(*place)["generation"]
        except NotFound:
            generation = "0"
        if generation != wanted[0]:
            _ = request.data  # the body, which must be read
            response.status = http.HTTPStatus.PRECONDITION_FAILED
            return
    _insert(request, response, storage, *args, **kwargs)


def move(request, response, storage):
    """objects.moveTo, by which gcsfs renames."""
    names = request.params
    bucket, old, new = names["bucket_name"], names["object_id"], names["target_id"]
    try:
        moved = objects._copy(request.base_url, storage, bucket, old, bucket, new)
    except NotFound:
        response.status = _ABSENT
        return
    storage.delete_file(bucket, old)
    response.json(moved)


def main(bucket: str) -> None:
    objects.download = download
    replacements = {_download: download, _insert: insert}
    handlers = [
        (path, {method: replacements.get(handler, handler) for method, handler in of.items()})
        for path, of in server.HANDLERS
    ]
    path = (
        r"^.*/b/(?P<bucket_name>[-.\w]+)/o/(?P<object_id>.*[^/]+)/moveTo/o/(?P<target_id>.*[^/]+)$"
    )
    server.HANDLERS = ((path, {"POST": move}), *handlers)
    storage = Storage(use_memory_fs=True)
    buckets.create_bucket(bucket, storage)

    class Handler(server.RequestHandler):
        def log_message(self, format, *args):
            pass

        def parse_request(self):
            if not super().parse_request():
                return False
            if match := re.fullmatch(r"/away/([\d.]+)", self.path):
                away[:] = [time.monotonic() + float(match[1]), 0]
                self.send_error(http.HTTPStatus.OK)
                return False
            if time.monotonic() > away[0]:
                return True
            away[1] += 1
            self.close_connection = True
            if away[1] % 2:
                self.send_error(http.HTTPStatus.SERVICE_UNAVAILABLE)
            return False

    away = [0.0, 0]

    class Server(http.server.HTTPServer):
        request_queue_size = 128

        def handle_error(self, request, client_address):
            pass  # clients that close a connection early

    with Server(("127.0.0.1", 0), functools.partial(Handler, storage)) as serving:
        print(f"http://127.0.0.1:{serving.server_address[1]}", flush=True)
        serving.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
