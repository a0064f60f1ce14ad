"""Refused events lie where somebody finds them, once each, whoever was killed while writing them down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from mlops_assets.streaming.dead_letters import bury, dead_letter_path
from mlops_assets.streaming.events import Refused
from resources.streams import Message

if TYPE_CHECKING:
    from conftest import Sensors


def refused(*offsets: str, body: bytes = b"{}") -> list[Refused]:
    return [Refused(Message(offset, body), f"because of {offset}") for offset in offsets]


@pytest.mark.parametrize("cut", [1, 20, 90])
def test_a_line_that_was_cut_short_is_written_again(home: Path, sensors: Sensors, cut: int) -> None:
    """The batch comes again after the kill; whole lines are not repeated."""
    source = sensors.module.readings
    assert bury(source, refused("0:1", "0:2")) == 2
    path = dead_letter_path(source)
    path.write_bytes(path.read_bytes()[:-cut])
    assert bury(source, refused("0:1", "0:2", "0:3")) == 2
    letters = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert [(letter["offset"], letter["reason"]) for letter in letters] == [
        (offset, f"because of {offset}") for offset in ("0:1", "0:2", "0:3")
    ]


def test_what_was_sent_can_be_read_whatever_it_was(home: Path, sensors: Sensors) -> None:
    """Bytes that are no text, and text that looks like a letter of ours, are kept as they can be shown."""
    source = sensors.module.readings
    bury(source, refused("1", body=b'\xff{"offset":"2"'))
    bury(source, refused("2"))
    first, second = (orjson.loads(line) for line in dead_letter_path(source).read_bytes().splitlines())
    assert first["event"] == '\ufffd{"offset":"2"' and second["offset"] == "2"


def test_nothing_refused_leaves_no_file(home: Path, sensors: Sensors) -> None:
    assert bury(sensors.module.readings, []) == 0
    assert not dead_letter_path(sensors.module.readings).exists()
