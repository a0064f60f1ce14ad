"""Side-by-side measurements against peers, printed as ratios: `python -m benchmarks [NAME ...]`.

Each file measures one thing in `measure()`. The results of both sides are compared before they are timed,
and only figures of one run are set against each other: another hour or machine changes both.
What each means and what was found: `docs/benchmarks.md`.
"""
