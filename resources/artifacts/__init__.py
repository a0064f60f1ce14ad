"""Model artifacts by their content: each file is stored once, and what is read is what was saved.

| file | what it is |
|---|---|
| manifest | what a directory holds, by hash: a text beside it, as `sha256sum` writes it |
| objects | files by hash on this machine, shared with the directories by hard links |
| runs | the artifacts of MLflow's runs: objects and links here, blobs by hash elsewhere |

On this machine the artifacts of a run stay plain files in plain directories, so that MLflow's UI, its clients and
people read them without this library.
"""
