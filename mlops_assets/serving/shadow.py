"""The shadow: a release that is told what is asked and answers nobody but the prediction log."""

from __future__ import annotations

from mlops_assets.serving.answers import Question


class Shadow:
    """Takes the questions that the champion is asked."""

    def tell(self, question: Question) -> None:
        """Pass on a question; never waits."""
