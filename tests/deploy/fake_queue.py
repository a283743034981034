"""The queue of an endpoint as its workers see it on the platform: one job to take, and where its output goes."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Queue:
    """`with Queue(given) as queue`: `queue.variables` are a worker's environment, `queue.outputs` what it sent."""

    def __init__(self, given: dict[str, Any]) -> None:
        jobs = [{"id": "job1", "input": given}]
        outputs: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if "/job-take/" in self.path and jobs:
                    self._answer(200, json.dumps(jobs.pop()).encode())
                else:
                    time.sleep(0.2)
                    self._answer(204, b"")

            def do_POST(self) -> None:
                outputs.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self._answer(200, b"{}")

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.outputs = outputs
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        url = f"http://127.0.0.1:{self._http.server_address[1]}/v2/ep"
        self.variables = {
            "RUNPOD_WEBHOOK_GET_JOB": f"{url}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{url}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{url}/ping",
            "RUNPOD_POD_ID": "worker1",
            "RUNPOD_AI_API_KEY": "none",
        }

    def __enter__(self) -> "Queue":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
