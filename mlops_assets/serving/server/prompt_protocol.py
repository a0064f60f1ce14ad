"""HTTP for predictions: uvicorn's own protocol, but a small request that is answered at once never becomes a task.

For each request uvicorn makes a scope, a cycle, an event, a task and two timers, and writes headers and body apart;
together they cost as much as the answer. A request whose bytes are all there, for a model that answers on the event
loop, is answered here where its last byte is parsed, with one write. Everything else goes uvicorn's way, unchanged:
other routes, large or chunked bodies, slow models, a client that closes, or that does not read its answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mlops_assets.serving.predict import INLINE_BYTES, prompt

if TYPE_CHECKING:
    from asyncio import TimerHandle

    from mlops_assets.serving.app import FrontDoor
    from mlops_assets.serving.predict import Asked

NOT_HERE = frozenset((b"transfer-encoding", b"expect", b"upgrade"))


class PromptProtocol(HttpToolsProtocol):
    """One connection. While `_asked` is set, the body of that request is being collected in `_parts`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._door = front_door(self.config.loaded_app)
        self._asked: Asked | None = None
        self._parts: list[bytes] = []
        self._active = 0.0  # when the last bytes came or went, by the loop's clock

    def on_message_begin(self) -> None:
        """What uvicorn does here waits until it is clear whose way the request goes."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        self._asked = self._asked_here()
        if self._asked is None:
            self._hand_over()

    def on_body(self, body: bytes) -> None:
        if self._asked is None:
            super().on_body(body)
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._asked is None:
            super().on_message_complete()
            return
        asked, body = self._asked, b"".join(self._parts)
        reply = None if self.flow.write_paused else prompt(self._door.serving, asked, body)
        if reply is None:
            self._hand_over()
            super().on_message_complete()
        else:
            self._asked = None
            self._parts.clear()
            self._write(*reply)

    def shutdown(self) -> None:
        """A request of which only a part has come is one in flight: it is answered."""
        if self._asked is not None:
            self._hand_over()
        super().shutdown()

    def _asked_here(self) -> Asked | None:
        """The prediction that these headers ask for; None when they are uvicorn's."""
        if self.parser.get_method() != b"POST" or self.parser.get_http_version() != "1.1":
            return None
        if self.limit_concurrency is not None or (self.cycle is not None and not self.cycle.response_complete):
            return None  # the answers to pipelined requests go in their order
        headers = dict(self.headers)
        size = headers.get(b"content-length", b"")
        if len(size) > 5 or not size.isdigit() or int(size) > INLINE_BYTES or not NOT_HERE.isdisjoint(headers):
            return None
        if headers.get(b"connection", b"keep-alive").lower() != b"keep-alive" or not self.url.isascii():
            return None
        path = self.url.decode("ascii")
        return None if "%" in path or "?" in path or self.root_path else self._door.asked(path, headers)

    def _hand_over(self) -> None:
        """Let uvicorn have the request, with what of it was read here."""
        url, headers, expect, parts = self.url, self.headers, self.expect_100_continue, self._parts
        self._asked, self._parts = None, []
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)  # the scope has this very list
        super().on_headers_complete()
        for part in parts:
            super().on_body(part)

    def _write(self, status: int, headers: list[tuple[bytes, bytes]], content: bytes) -> None:
        lines = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        lines += (b"\r\n", content)
        self.transport.write(b"".join(lines))
        self.server_state.total_requests += 1

    # uvicorn makes and cancels a timer for each request. Here one runs on, and looks around when it is due.

    def data_received(self, data: bytes) -> None:
        timer, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None
        super().data_received(data)
        self._active = self.loop.time()
        self.timeout_keep_alive_task = timer or self._timer(self.timeout_keep_alive)

    def on_response_complete(self) -> None:
        self._active = self.loop.time()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that was idle for so long."""
        self.timeout_keep_alive_task = None
        busy = self._asked is not None or (self.cycle is not None and not self.cycle.response_complete)
        left = self.timeout_keep_alive - (self.loop.time() - self._active)
        if busy or left > 0:
            self.timeout_keep_alive_task = self._timer(max(left, 1.0))
        else:
            super().timeout_keep_alive_handler()

    def _timer(self, seconds: float) -> TimerHandle | None:
        return None if self.transport.is_closing() else self.loop.call_later(seconds, self.timeout_keep_alive_handler)


def front_door(app: Any) -> FrontDoor:
    """The front door behind uvicorn's own middlewares."""
    from mlops_assets.serving.app import FrontDoor

    while not isinstance(app, FrontDoor):
        app = app.app
    return app
