"""The links of the chain that compute tables, on Spark: for tables that one machine cannot hold.

They publish what their twins in `mlops_assets.links` publish, by the same laws, under the same names: whoever reads
a table cannot tell which engine made it. No step brings a table to the process that runs it.
"""
