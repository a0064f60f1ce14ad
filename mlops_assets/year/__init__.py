"""A year without a hand on it: 2013 is lived day by day by Dagster's own daemons, with what goes wrong in a year.

The platform is the one that `mlops up` runs: the same assets, sensors, conditions, queue and endpoint. Only three
things are played: the clock, the upstream that delivers a day's raw data (late, twice, corrected or not at all), and
the people who ask the endpoint. What follows from them is asked for by sensors and conditions alone.
"""
