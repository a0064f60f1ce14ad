"""Models as ONNX graphs: written where a model is trained, run by ONNX Runtime where it serves.

A graph answers one row in microseconds, where a tree library's own Python interface takes a tenth of a
millisecond, and it needs no training library beside it. It is written by hand here and not by a converter:
the operators are few, missing values and double thresholds have to be exact, and a converter is one more
large package that trails behind the frameworks.
"""
