"""The serving process: a release in memory, the features it looks up, and the log of its answers.

Nothing here imports Dagster, Feast or MLflow: what is deployed serves on while they are down.
"""
