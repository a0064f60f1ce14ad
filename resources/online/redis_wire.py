"""A connection to Redis that does one thing fast: send commands together, and read their answers.

redis-py spends several times as long on a pipeline as the server; here the bytes go from hiredis to the socket and
back. An answer that does not come is asked for again over a new connection, a few times; so what is sent must be
harmless when repeated. Anything else that is asked of Redis goes through redis-py.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    import hiredis

Command = tuple[Any, ...]
Packet = tuple[bytes, int]  # commands as Redis reads them, and how many they are
TRIES, PAUSE, LONGEST_PAUSE = 7, 0.05, 0.8  # seconds between tries, doubled each time: two seconds in all
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 10.0
BUFFER = 1 << 17


@dataclass(frozen=True)
class Patience:
    """How often an answer that does not come is asked for, and how long each wait may be, in seconds."""

    tries: int
    pause: float
    connect: float
    answer: float
    also_late: bool = True
    """Is an answer asked for again that did not come in time, or only one that was cut off?"""

    @classmethod
    def short(cls, seconds: float) -> Self:
        """Of who cannot wait: a connection that turns out to be dead is made anew, once; what is late is given up.

        At worst one connection and one answer are waited for: twice `seconds`.
        """
        return cls(2, 0.0, seconds, seconds, also_late=False)


class RedisRefusedError(RuntimeError):
    """Redis answered, with an error."""

    @classmethod
    def of(cls, where: str, said: object) -> Self:
        return cls(f"Redis at {where} refused: {said}.")


def packet(*commands: Command) -> Packet:
    import hiredis

    return b"".join(map(hiredis.pack_command, commands)), len(commands)


class RedisWire:
    """As many connections to one Redis as were ever needed at once; safe from any thread."""

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self._url = urlsplit(url)
        self._patience = patience or Patience(TRIES, PAUSE, CONNECT_SECONDS, ANSWER_SECONDS)
        self._idle: deque[Connection] = deque()
        port, path = self._url.port or 6379, self._url.path
        self.where = f"{self._url.scheme}://{self._url.hostname}:{port}{path}"  # no password

    def ask(self, packets: Callable[[], Iterable[Packet]]) -> list[Any]:
        """The answer to each command of each packet of bytes, in order; OSError when there is none after several tries.

        `packets` is called for each try. They may be lazy: the server is at work on one while the next is made.
        Raises RedisRefusedError where an answer is an error.
        """
        pause, tries = self._patience.pause, self._patience.tries
        while True:
            tries -= 1
            try:
                return self._checked(self._ask(packets()))
            except OSError as error:
                self.close()  # the others of a server that went away are dead too
                if not tries or (isinstance(error, TimeoutError) and not self._patience.also_late):
                    raise
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _ask(self, packets: Iterable[Packet]) -> list[Any]:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = Connection(self._url, self._patience)
        try:
            answers = connection.ask(packets)
        except BaseException:
            connection.close()  # half read: nobody may read on
            raise
        self._idle.append(connection)
        return answers

    def _checked(self, answers: list[Any]) -> list[Any]:
        for answer in answers:
            if isinstance(answer, Exception):  # hiredis gives an error reply as one
                if str(answer).startswith(("LOADING", "TRYAGAIN", "MASTERDOWN")):
                    raise ConnectionError(str(answer))  # not ready yet
                raise RedisRefusedError.of(self.where, answer)
        return answers


class Connection:
    """One socket, with the answers of the commands that were sent over it."""

    def __init__(self, url: Any, patience: Patience) -> None:
        import hiredis

        self._buffer = bytearray(BUFFER)  # kept: to be given as much memory anew costs more than a small answer
        self._reader: hiredis.Reader = hiredis.Reader()
        self._socket = _connected(url, patience)
        try:
            self._greet(url)
        except BaseException:
            self.close()
            raise

    def ask(self, packets: Iterable[Packet]) -> list[Any]:
        sent = 0
        for commands, count in packets:
            self._socket.sendall(commands)
            sent += count
        return [self._answer() for _ in range(sent)]

    def close(self) -> None:
        self._socket.close()

    def _answer(self) -> Any:
        while (answer := self._reader.gets()) is False:
            received = self._socket.recv_into(self._buffer)
            if not received:
                raise ConnectionError("Redis closed the connection")
            self._reader.feed(self._buffer, 0, received)  # type: ignore[arg-type]
        return answer

    def _greet(self, url: Any) -> None:
        import hiredis

        password = [unquote(part) for part in (url.username, url.password) if part]
        greeting: list[Command] = [("AUTH", *password)] if password else []
        if database := url.path.strip("/"):
            greeting.append(("SELECT", database))
        for answer in self.ask([packet(*greeting)]):
            if isinstance(answer, hiredis.ReplyError):
                raise RedisRefusedError.of(f"{url.hostname}:{url.port or 6379}", answer)


def _connected(url: Any, patience: Patience) -> socket.socket:
    plain = socket.create_connection((url.hostname or "localhost", url.port or 6379), timeout=patience.connect)
    plain.settimeout(patience.answer)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if url.scheme != "rediss":
        return plain
    return ssl.create_default_context().wrap_socket(plain, server_hostname=url.hostname)
