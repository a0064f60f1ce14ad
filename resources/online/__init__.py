"""The online store: Feast's tables and hashes, and beside them the packed rows that the endpoint reads."""
