"""What a deployed model sees and how well it does: statistics, reports and verdicts, all free of Dagster.

The numbers are computed over every row; only the pictures are drawn from samples, and they say so.
A verdict is never given on too few rows.
"""
