"""Search over what is declared: views and features by name, meaning, unit, owner, tag, entity.

One `Entry` is one view or one feature; `mlops features search` reads them. Every word of a query must be found in an
entry, in any field; entries that have the words in their own name come first. A word that nothing holds is taken for
the nearest words there are. A query passes over the text of all entries once a word; fuzzy comparison, a thousand
times dearer, is for at most `COMPARED` candidates a word, chosen by the letter pairs they share.
"""

from __future__ import annotations

import string
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import cached_property

BREAKS = str.maketrans(dict.fromkeys(string.punctuation + string.whitespace, " "))  # what ends a word
COMPARED = 50
ALIKE = 0.75  # of 1; two letters swapped in a word of eight are 0.875
NEAR = 3
NAME, WHOLE, BEGINNING, INSIDE = 100.0, 4.0, 2.0, 1.0


@dataclass(frozen=True)
class Entry:
    """A view or a feature: `id` is `team/view` or `team/view:feature`; `words` is all else it may be found by."""

    id: str
    kind: str
    name: str
    type: str
    meaning: str
    view: str
    owner: str
    used_by: tuple[str, ...]
    words: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Found:
    """What a query found, best first; where that is nothing, `near` are the nearest words and names there are."""

    entries: tuple[Entry, ...]
    near: tuple[str, ...] = ()


@dataclass
class Index:
    """Entries as text that can be searched."""

    entries: Sequence[Entry]
    compared: int = 0  # fuzzy comparisons made so far

    def search(self, text: str) -> Found:
        """Entries that have every word of `text`, best first; none for a text without letters or digits."""
        words = list(dict.fromkeys(_plain(text).split()))
        scored = [self._scores(word) for word in words]
        common = set.intersection(*(set(scores) for scores in scored)) if scored else set[int]()
        ranked = sorted(common, key=lambda at: (-sum(scores[at] for scores in scored), self.entries[at].id))
        near = () if ranked else self._near(words, scored)
        return Found(tuple(self.entries[at] for at in ranked), near)

    def _scores(self, word: str) -> dict[int, float]:
        """By entry, how well it has the word; one that is nowhere as it stands is taken for what is spelt nearly so."""
        if found := self._having(word):
            return found
        scores: dict[int, float] = {}
        for known in self._misspelt(word):
            for at, score in self._having(known).items():
                scores[at] = max(scores.get(at, 0.0), score)
        return scores

    def _having(self, word: str) -> dict[int, float]:
        """In its name before anywhere else, whole before in part."""
        whole, beginning = f" {word} ", f" {word}"
        scores: dict[int, float] = {}
        for texts, weight in ((self._texts, 1.0), (self._names, NAME)):
            for at, text in enumerate(texts):
                if word in text:
                    scores[at] = weight * (WHOLE if whole in text else BEGINNING if beginning in text else INSIDE)
        return scores

    def _misspelt(self, word: str, alike: float = ALIKE) -> list[str]:
        """Known words nearly spelt so, nearest first. A number is no misspelling of another."""
        if any(letter.isdigit() for letter in word):
            return []
        shared = Counter(known for pair in _pairs(word) for known in self._by_pair.get(pair, ()))
        matcher, near = SequenceMatcher(b=word, autojunk=False), []
        for known, _ in shared.most_common(COMPARED):
            self.compared += 1
            matcher.set_seq1(known)
            if matcher.real_quick_ratio() >= alike and (ratio := matcher.ratio()) >= alike:
                near.append((-ratio, known))
        return [known for _, known in sorted(near)]

    def _near(self, words: Sequence[str], scored: Sequence[dict[int, float]]) -> tuple[str, ...]:
        """For words that nothing has, the nearest there are; where each is somewhere, what has the rarest of them."""
        if missing := [word for word, scores in zip(words, scored, strict=True) if not scores]:
            return tuple(known for word in missing for known in self._misspelt(word, alike=0.5)[:NEAR])
        rarest = min(scored, key=len, default={})
        return tuple(self.entries[at].id for at in sorted(rarest, key=lambda at: -rarest[at])[:NEAR])

    @cached_property
    def _names(self) -> list[str]:
        return [_plain(entry.name) for entry in self.entries]

    @cached_property
    def _texts(self) -> list[str]:
        return [_plain(" ".join((item.id, item.meaning, item.type, item.owner, *item.words))) for item in self.entries]

    @cached_property
    def _by_pair(self) -> dict[str, list[str]]:
        """The known words by each pair of letters in them; made when a first word is misspelt."""
        found: dict[str, list[str]] = defaultdict(list)
        for known in set("".join((*self._names, *self._texts)).split()):
            for pair in _pairs(known):
                found[pair].append(known)
        return found


def _plain(text: str) -> str:
    """Lower case words with a space on each side."""
    return f" {text.lower().translate(BREAKS)} "


def _pairs(word: str) -> set[str]:
    """Neighbouring letters, the word's ends among them."""
    marked = f"^{word}$"
    return {marked[at : at + 2] for at in range(len(marked) - 1)}
