"""The processes of an endpoint: a supervisor, its workers, and how they speak HTTP."""
