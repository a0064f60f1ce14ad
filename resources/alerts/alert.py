"""What is told: an alert, and a message, which is one or several of a group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Self

Severity = Literal["warning", "error"]


@dataclass(frozen=True)
class Alert:
    """What happened, to what, why, what to do, and where to look. `text` and `suggestion` are a line each.

    Alerts of one `group` (a model's id, say) that come together are told together; the same `key`, by default the
    title, is told once while it lasts. `links` are further pages by name.
    """

    title: str
    text: str
    severity: Severity = "error"
    link: str | None = None
    suggestion: str = ""
    group: str = ""
    key: str = ""
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """What makes another alert the same."""
        return self.key or self.title

    @property
    def pages(self) -> dict[str, str]:
        """Every page to look at, by name."""
        return {**({"page": self.link} if self.link else {}), **self.links}

    def __str__(self) -> str:
        return f"{self.title}: {self.text}" + (f" ({self.link})" if self.link else "")


@dataclass(frozen=True)
class Told:
    """An alert as it is told: how often it happened since it was told last, and since when it lasts (Unix seconds)."""

    alert: Alert
    times: int = 1
    since: float = 0.0

    @property
    def text(self) -> str:
        if self.times == 1:
            return self.alert.text
        return f"{self.alert.text} ({self.times} times more; it began {_clock(self.since)})"

    @property
    def line(self) -> str:
        """All of it, for readers without any markup."""
        pages = " ".join(self.alert.pages.values())
        return " ".join(part for part in (f"{self.alert.title}: {self.text}", self.alert.suggestion, pages) if part)

    def to_json(self) -> dict[str, Any]:
        return {"alert": asdict(self.alert), "times": self.times, "since": self.since}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        return cls(Alert(**document["alert"]), document["times"], document["since"])


@dataclass(frozen=True)
class Message:
    """What one delivery carries. Its `id` is the same at each attempt, so that a receiver can drop doubles."""

    id: str
    group: str
    told: tuple[Told, ...]

    @property
    def severity(self) -> Severity:
        return "error" if any(one.alert.severity == "error" for one in self.told) else "warning"

    @property
    def title(self) -> str:
        return self.told[0].alert.title if len(self.told) == 1 else f"{self.group}: {len(self.told)} alerts"

    @property
    def text(self) -> str:
        return "\n".join(one.line for one in self.told)


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
