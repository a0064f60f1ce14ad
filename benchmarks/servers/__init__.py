"""The peers of the serving benchmark, each as its own documentation has people write it.

They are programs of their own, started by `benchmarks.contenders`; MODEL names the file of the XGBoost model.
"""
