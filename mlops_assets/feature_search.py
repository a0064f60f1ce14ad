"""Search over what is declared: views and features by name, meaning, unit, owner, tag, entity.

One `Entry` is one view or one feature; `mlops features search` reads them. Every word of a query must be found in an
entry, in any field; entries that have the words in their own name come first. A word that nothing holds is taken for
the nearest words there are. The cost of a query grows with the words that exist, never with words times entries:
fuzzy comparison is for at most `COMPARED` candidates a word, chosen by the letter pairs they share.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import cached_property

WORD = re.compile(r"[a-z0-9]+")
COMPARED = 50
ALIKE = 0.75  # of 1; two letters swapped in a word of eight are 0.875
NEAR = 3
NAME, WHOLE, BEGINNING, INSIDE, TYPO = 100.0, 8.0, 4.0, 2.0, 1.0


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
    """Entries by word. Built in one pass over their text."""

    entries: Sequence[Entry]
    compared: int = 0  # fuzzy comparisons made, which is what a query costs beyond looking up

    def search(self, text: str) -> Found:
        """Entries that have every word of `text`, best first; none for a text without letters or digits."""
        words = list(dict.fromkeys(WORD.findall(text.lower())))
        scored = [self._scores(word) for word in words]
        common = set.intersection(*(set(scores) for scores in scored)) if scored else set[int]()
        ranked = sorted(common, key=lambda at: (-sum(scores[at] for scores in scored), self.entries[at].id))
        near = () if ranked else self._near(words, scored)
        return Found(tuple(self.entries[at] for at in ranked), near)

    def _scores(self, word: str) -> dict[int, float]:
        """By entry, how well it has the word: in its name before anywhere else, whole before in part."""
        scores: dict[int, float] = {}
        for known, quality in self._alike(word).items():
            for places, weight in ((self._names, NAME), (self._texts, 1.0)):
                for at in places.get(known, ()):
                    scores[at] = max(scores.get(at, 0.0), quality * weight)
        return scores

    def _alike(self, word: str) -> dict[str, float]:
        """Known words that stand for `word`, and how well; misspelt ones only where it is nowhere as it stands."""
        found = {
            known: WHOLE if known == word else BEGINNING if known.startswith(word) else INSIDE
            for known in self._vocabulary
            if word in known
        }
        return found or dict.fromkeys(self._misspelt(word), TYPO)

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
    def _names(self) -> dict[str, list[int]]:
        return _places(entry.name for entry in self.entries)

    @cached_property
    def _texts(self) -> dict[str, list[int]]:
        return _places(
            " ".join((entry.id, entry.meaning, entry.type, entry.owner, *entry.words)) for entry in self.entries
        )

    @cached_property
    def _vocabulary(self) -> set[str]:
        return {*self._names, *self._texts}

    @cached_property
    def _by_pair(self) -> dict[str, list[str]]:
        """The known words by each pair of letters in them; made when a first word is misspelt."""
        found: dict[str, list[str]] = defaultdict(list)
        for known in self._vocabulary:
            for pair in _pairs(known):
                found[pair].append(known)
        return found


def _places(texts: Iterable[str]) -> dict[str, list[int]]:
    """By word, the numbers of the texts that have it."""
    found: dict[str, list[int]] = defaultdict(list)
    for at, text in enumerate(texts):
        for word in set(WORD.findall(text.lower())):
            found[word].append(at)
    return found


def _pairs(word: str) -> set[str]:
    """Neighbouring letters, the word's ends among them."""
    marked = f"^{word}$"
    return {marked[at : at + 2] for at in range(len(marked) - 1)}
