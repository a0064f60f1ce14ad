"""What MLflow does slowly at scale, done beside it on the same rows: a spool, searches, indices, and an archive.

| file | what it is |
|---|---|
| tables | the columns of MLflow's schema that are used here, and the way to its database |
| migration | indices of our own, with a version table of their own |
| search | runs and versions by metric, param and tag |
| spool | the points of a training loop, in a file that outlives the process |
| delivery | from the spool into MLflow, each point once |
| archive | old metric history and old versions, in Parquet |

MLflow stays the owner of its schema and its rows: its server, UI and clients read and write them as ever. Where its
database is not at hand (a server over HTTP), everything goes through its API, slower.
"""
