"""A Cloud Storage server on the loopback interface: as much of its JSON API as gcsfs, TensorStore and Orbax speak.

In: `serve(["bucket"])`, in this process or as `python tests/fake_bucket.py PORT BUCKET...`. Out: a server and the
environment with which clients find it. Objects have generations, which conditions are held against, as the real ones.
"""

import base64
import json
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import google_crc32c

ROUTE = re.compile(r"(?:/(?:upload|download))?/storage/v1/b/([^/]+)(?:/o(?:/([^/]+)(?:/(rewrite|move)To/(.+))?)?)?/?")
REFUSING = {"forbidden": 403, "anonymous": 401}  # buckets that may not be read, and what they answer


@dataclass
class Stored:
    """An object."""

    data: bytes
    generation: int


@dataclass
class Store:
    """All buckets, by name, and the uploads that have begun."""

    buckets: dict[str, dict[str, Stored]]
    lock: threading.RLock = field(default_factory=threading.RLock)
    uploads: dict[str, tuple[str, str, dict[str, str], bytearray]] = field(default_factory=dict)
    newest: int = field(default_factory=time.time_ns)

    def about(self, bucket: str, name: str) -> dict[str, str]:
        """What the API says of an object."""
        stored = self.buckets[bucket][name]
        crc = base64.b64encode(google_crc32c.Checksum(stored.data).digest()).decode()
        own = {"kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(stored.data))}
        times = dict.fromkeys(("timeCreated", "updated"), "2026-01-01T00:00:00.000Z")
        return own | times | {"generation": str(stored.generation), "metageneration": "1", "crc32c": crc}

    def refused(self, bucket: str, name: str, query: dict[str, str]) -> bool:
        """Whether the object is not of the generation that the request wants it to be."""
        stored = self.buckets[bucket].get(name)
        wanted = query.get("ifGenerationMatch")
        return wanted is not None and int(wanted) != (stored.generation if stored else 0)

    def put(self, bucket: str, name: str, data: bytes) -> None:
        """Stores an object anew."""
        self.newest += 1
        self.buckets[bucket][name] = Stored(data, self.newest)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    store: Store

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        with self.store.lock:
            self._get()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.store.lock:
            self._post(body)

    do_PUT = do_POST  # noqa: N815

    def do_DELETE(self) -> None:
        with self.store.lock:
            bucket, name, _, _, query = self._asked()
            if self._absent(bucket, name):
                return
            if self.store.refused(bucket, name, query):
                self._fail(412)
            else:
                del self.store.buckets[bucket][name]
                self._answer(204, b"")

    def _asked(self) -> tuple[str, str, str, str, dict[str, str]]:
        parts = urlsplit(self.path)
        match = ROUTE.fullmatch(parts.path)
        assert match, self.path
        bucket, name, verb, other = (unquote(part or "") for part in match.groups())
        return bucket, name, verb, other, dict(parse_qsl(parts.query, keep_blank_values=True))

    def _absent(self, bucket: str, name: str = "") -> bool:
        if bucket in REFUSING:
            self._fail(REFUSING[bucket], "the caller does not have storage.buckets.get access")
        elif bucket not in self.store.buckets:
            self._fail(404, "The specified bucket does not exist.")
        elif name and name not in self.store.buckets[bucket]:
            self._fail(404, f"No such object: {bucket}/{name}")
        else:
            return False
        return True

    def _get(self) -> None:
        bucket, name, _, _, query = self._asked()
        if self._absent(bucket, name):
            return
        if not urlsplit(self.path).path.rstrip("/").endswith("/o") and not name:
            self._json({"kind": "storage#bucket", "name": bucket, "id": bucket, "locationType": "region"})
        elif not name:
            self._json(self._listing(bucket, query))
        elif query.get("alt") != "media":
            self._json(self.store.about(bucket, name))
        else:
            self._media(bucket, name, query)

    def _media(self, bucket: str, name: str, query: dict[str, str]) -> None:
        stored = self.store.buckets[bucket][name]
        headers = {"x-goog-generation": str(stored.generation), "Content-Type": "application/octet-stream"}
        begin, end, whole = self._range(len(stored.data))
        if query.get("ifGenerationNotMatch") == str(stored.generation):
            self._answer(304, b"", headers)
        elif self.store.refused(bucket, name, query):
            self._fail(412)
        elif whole:
            self._answer(200, stored.data, headers)
        elif begin >= len(stored.data):
            self._fail(416)
        else:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(stored.data)}"
            self._answer(206, stored.data[begin:end], headers)

    def _range(self, size: int) -> tuple[int, int, bool]:
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            return 0, size, True
        if not asked[1]:
            return max(0, size - int(asked[2])), size, False
        return int(asked[1]), min(size, int(asked[2]) + 1 if asked[2] else size), False

    def _listing(self, bucket: str, query: dict[str, str]) -> dict[str, object]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        begin, end = query.get("startOffset", ""), query.get("endOffset", "\U0010ffff")
        found: dict[str, bool] = {}
        for name in sorted(self.store.buckets[bucket]):
            if name.startswith(prefix) and begin <= name < end:
                head, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
                found[prefix + head + cut if cut else name] = bool(cut)
        later = [name for name in found if name > query.get("pageToken", "")]
        page = later[: int(query.get("maxResults", 1000))]
        answer: dict[str, object] = {
            "kind": "storage#objects",
            "items": [self.store.about(bucket, name) for name in page if not found[name]],
            "prefixes": [name for name in page if found[name]],
        }
        return answer | ({"nextPageToken": page[-1]} if len(later) > len(page) else {})

    def _post(self, body: bytes) -> None:
        bucket, name, verb, other, query = self._asked()
        if self._absent(bucket, name if verb else ""):
            return
        if verb:
            self._copy(bucket, name, verb, other)
        elif "upload_id" in query:
            self._go_on(query["upload_id"], body)
        elif query.get("uploadType") == "resumable":
            self._begin(bucket, query, body)
        elif query.get("uploadType") == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            about, _, rest = body.partition(b"--" + boundary)[2].partition(b"\n--" + boundary)
            own = json.loads(re.split(rb"\r?\n\r?\n", about, maxsplit=1)[1])["name"]
            data = re.split(rb"\r?\n\r?\n", rest, maxsplit=1)[1].rpartition(b"--" + boundary + b"--")[0]
            self._store(bucket, own, query, data[: -2 if data.endswith(b"\r\n") else -1])
        else:
            self._store(bucket, query["name"], query, body)

    def _copy(self, bucket: str, name: str, verb: str, other: str) -> None:
        target = other.rpartition("/o/")[2] if verb == "rewrite" else other.removeprefix("o/")
        self.store.put(bucket, target, self.store.buckets[bucket][name].data)
        if verb == "move":
            del self.store.buckets[bucket][name]
        about = self.store.about(bucket, target)
        self._json({"done": True, "resource": about} if verb == "rewrite" else about)

    def _begin(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        key = str(len(self.store.uploads))
        own = query.get("name") or json.loads(body)["name"]
        self.store.uploads[key] = (bucket, own, query, bytearray())
        host = f"http://{self.headers['Host']}"
        at = f"{host}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&name={quote(own)}&upload_id={key}"
        self._answer(200, b"", {"Location": at})

    def _go_on(self, key: str, body: bytes) -> None:
        bucket, name, query, data = self.store.uploads[key]
        data += body
        if re.search(r"/\d+$", self.headers.get("Content-Range") or "/0"):
            self._store(bucket, name, query, bytes(data))
        else:
            self._answer(308, b"", {"Range": f"bytes=0-{len(data) - 1}"})

    def _store(self, bucket: str, name: str, query: dict[str, str], data: bytes) -> None:
        if self.store.refused(bucket, name, query):
            self._fail(412)
        else:
            self.store.put(bucket, name, data)
            self._json(self.store.about(bucket, name))

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, code: int, message: str = "refused") -> None:
        said = json.dumps({"error": {"code": code, "message": message}}).encode()
        self._answer(code, said, {"Content-Type": "application/json"})

    def _answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if code not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Many connections at once."""

    daemon_threads, request_queue_size = True, 128

    def handle_error(self, *_: object) -> None:
        """Clients leave as they like."""


def serve(buckets: list[str], port: int = 0) -> tuple[Server, Store]:
    """Starts the server in threads of this process."""
    store = Store({bucket: {} for bucket in buckets})
    server = Server(("127.0.0.1", port), type("Bound", (Handler,), {"store": store}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, store


def environment(server: Server) -> dict[str, str]:
    """Of a process that is to take this server for Google's."""
    url = f"http://127.0.0.1:{server.server_address[1]}"
    names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
    return dict.fromkeys(names, url) | {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "NO_GCE_CHECK": "true"}


if __name__ == "__main__":
    serve(sys.argv[2:], int(sys.argv[1]))
    threading.Event().wait()
