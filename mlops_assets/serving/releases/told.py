"""A question on its way from a serving process to the shadow beside it: a line of JSON, and a frame behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from io import BytesIO
from typing import IO, Self

import orjson

from mlops_assets.serving.answers import FrameInputs, Inputs, Question, RowInputs

OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY


class UnanswerableError(ValueError):
    """A shadow asks for other inputs than the release that was asked."""

    @classmethod
    def of(cls, missing: Sequence[str]) -> Self:
        return cls(f"The rows bring all inputs of another release; {', '.join(missing)} is not among them.")


@dataclass(frozen=True, slots=True)
class Told:
    """A question, and the inputs, by name and in their order, of the release that was asked it; none if they agree."""

    question: Question
    names: Sequence[str]

    def to_bytes(self) -> bytes:
        question, given = self.question, self.question.given
        frame = _ipc(given) if isinstance(given, FrameInputs) else b""
        said = {
            "at": question.at,
            "ids": question.ids,
            "keys": question.keys,
            "asked": question.asked,
            "rows": given.rows() if given is not None and not frame else None,
            "names": self.names,
            "frame": len(frame),
        }
        return orjson.dumps(said, option=OPTIONS, default=list) + frame

    @classmethod
    def read_all(cls, stream: IO[bytes]) -> Iterator[Self]:
        """What was written into a pipe, until it is closed."""
        for line in stream:
            said = orjson.loads(line)
            given: Inputs | None = None if said["rows"] is None else RowInputs(said["rows"])
            if said["frame"]:
                import polars as pl

                given = FrameInputs(pl.read_ipc(BytesIO(stream.read(said["frame"]))))
            at = datetime.fromisoformat(said["at"])
            yield cls(Question(at, said["ids"], said["keys"], said["asked"], given), said["names"])

    def asked_of(self, inputs: Sequence[str]) -> Question:
        """The same of a release with these inputs. Raises UnanswerableError."""
        given = self.question.given
        if given is None or list(self.names or inputs) == list(inputs):
            return self.question
        if missing := [name for name in inputs if name not in self.names]:
            raise UnanswerableError.of(missing)
        return replace(self.question, given=_reordered(given, self.names, inputs))


def _reordered(given: Inputs, names: Sequence[str], inputs: Sequence[str]) -> Inputs:
    if isinstance(given, FrameInputs):
        return FrameInputs(given.frame.select(inputs))
    places = [names.index(name) for name in inputs]
    return RowInputs([[row[place] for place in places] for row in given.rows()])


def _ipc(inputs: FrameInputs) -> bytes:
    held = BytesIO()
    inputs.frame.write_ipc(held)
    return held.getvalue()
