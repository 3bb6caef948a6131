"""An emulated bucket: the JSON API of Google Cloud Storage on this machine, which fails one request in fifty.

gcp-storage-emulator keeps the objects; generations and conditions on them, which leases need, and moves are ours.

    python -m tests.chaos.bucket PORT
"""

import json
import random
import re
import sys
import threading
import urllib.parse
from http import HTTPStatus, server

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound

FAILS = 0.02
MOVE = re.compile("/storage/v1/b/([^/]+)/o/(.+)/moveTo/o/(.+)")


class Handler(emulator.RequestHandler):
    generation = ""  # of the object that is asked for
    lock, rng = threading.Lock(), random.Random(0)

    def handle_one(self, method: str) -> None:
        with self.lock:
            length = int(self.headers.get("Content-Length") or 0)
            if self.rng.random() < FAILS:
                self.rfile.read(length)
                self.reply(HTTPStatus.SERVICE_UNAVAILABLE)
            elif code := self.unmet(method):
                self.rfile.read(length)
                self.reply(code)
            elif move := MOVE.fullmatch(urllib.parse.unquote(urllib.parse.urlparse(self.path).path)):
                self.rfile.read(length)
                self.move(*move.groups())
            else:
                emulator.Router(self).handle(method)

    def move(self, bucket: str, source: str, to: str) -> None:
        try:
            made = emulator.objects._copy("", self.storage, bucket, source, bucket, to)
            self.storage.delete_file(bucket, source)
        except NotFound:
            return self.reply(HTTPStatus.NOT_FOUND)
        self.reply(HTTPStatus.OK, json.dumps(made).encode())

    def reply(self, code: int, content: bytes = b"") -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def unmet(self, method: str) -> int:
        """The status of a request whose preconditions are not met; 0 where they are."""
        url = urllib.parse.urlparse(self.path)
        query = {k: v[0] for k, v in urllib.parse.parse_qs(url.query).items()}
        parts = url.path.split("/b/", 1)[-1].split("/o", 1)
        name = query.get("name") or urllib.parse.unquote(parts[-1].lstrip("/"))
        try:
            now = self.generation = self.storage.get_file_obj(parts[0], name)["generation"]
        except NotFound:
            now = "0"
        wants = {k: query[k] for k in ("ifGenerationMatch", "ifGenerationNotMatch") if k in query}
        if wants.get("ifGenerationMatch", now) != now:
            return HTTPStatus.PRECONDITION_FAILED
        if wants.get("ifGenerationNotMatch") == now:
            return HTTPStatus.NOT_MODIFIED if method == "GET" else HTTPStatus.PRECONDITION_FAILED
        return 0

    def end_headers(self) -> None:
        if self.generation:
            self.send_header("X-Goog-Generation", self.generation)
        super().end_headers()

    do_GET = lambda self: self.handle_one("GET")
    do_POST = lambda self: self.handle_one("POST")
    do_PUT = lambda self: self.handle_one("PUT")
    do_PATCH = lambda self: self.handle_one("PATCH")
    do_DELETE = lambda self: self.handle_one("DELETE")


def main(port: int) -> None:
    made = emulator.create_server("localhost", 0, in_memory=True, default_bucket="bucket")
    handler = lambda *args: Handler(made._storage, *args)
    with server.ThreadingHTTPServer(("localhost", port), handler) as http:
        print("ready", flush=True)
        http.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))
