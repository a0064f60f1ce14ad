"""The links of the chain, one file each: a declaration goes in, an asset with its checks comes out."""
