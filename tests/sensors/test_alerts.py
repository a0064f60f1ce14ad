"""The sensor delivers what a process left behind."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg

from resources.alerts import Alert, AlertResource, outbox
from sensors.alerts import alerts_sensor


def test_what_a_killed_process_left_is_delivered_by_the_next_tick(home: Path) -> None:
    """An alert that only reached the outbox arrives, and what is over its time is given up."""
    now, got = time.time(), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["title"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    outbox.put(Alert("left behind", "x"), ["webhook"], now - 60, window=0, repeat=60)
    outbox.put(Alert("of the day before", "x"), ["webhook"], now - 90_000, window=0, repeat=60)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        alerts = AlertResource(channels={"webhook": f"http://127.0.0.1:{server.server_port}/"})
        skipped = alerts_sensor(dg.build_sensor_context(resources={"alerts": alerts}))
        server.shutdown()
    assert got == ["left behind"]
    assert {one.message.title: one.deliveries[0].state for one in outbox.last(9)} == {
        "left behind": "delivered",
        "of the day before": "given up",
    }
    assert isinstance(skipped, dg.SkipReason)
