"""Neural nets for tables, whatever they are fitted with: a preparation of the columns, then dense layers.

The artifact is two files that any tool can read: `architecture.json`, plain numbers and words, and
`model.safetensors`, the tensors. Neither can hold code, and the net is rebuilt from our own words alone: a
Keras archive or a torch file may name Python to run, so neither is ever written or read.
"""
