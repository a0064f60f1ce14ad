"""Where alerts go: a file for each channel, found by its name. A new channel is a new file here.

It has `VARIABLE`, the environment's variable that holds its address (a secret), and
`deliver(address, message, timeout)`, which returns when the receiver took the message, raises RefusedError for what
another attempt cannot mend, and anything else for what it may.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Protocol, Self, cast

if TYPE_CHECKING:
    from resources.alerts.alert import Message


class RefusedError(RuntimeError):
    """A receiver will not take a message, however often it is tried."""

    @classmethod
    def of(cls, why: str, variable: str) -> Self:
        return cls(f"{why}. Mend {variable} and send a test with `mlops alerts --test`.")


class UnknownChannelError(LookupError):
    """Alerts are to go where no channel leads."""

    @classmethod
    def of(cls, name: str) -> Self:
        return cls(f"Alerts know no channel {name!r} (known: {', '.join(names())}). Name one of them, or add a file.")


class Channel(Protocol):
    """What a file here is."""

    VARIABLE: str

    def deliver(self, address: str, message: Message, timeout: float) -> None: ...


def names() -> list[str]:
    return sorted(module.name for module in iter_modules(__path__))


def channel_named(name: str) -> Channel:
    """The channel of that name. Raises UnknownChannelError."""
    if name not in names():
        raise UnknownChannelError.of(name)
    return cast("Channel", import_module(f"{__name__}.{name}"))


def variables() -> dict[str, str]:
    """By channel, the environment's variable that holds its address."""
    return {name: channel_named(name).VARIABLE for name in names()}
