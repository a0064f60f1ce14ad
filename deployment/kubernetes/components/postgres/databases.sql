-- Beside the database that the server makes for Dagster and the platform itself. Run once, when the volume is empty.
CREATE DATABASE mlflow;
