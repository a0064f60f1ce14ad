"""Streaming ingestion: events of a declared source, online and offline together (`mlops ingest TEAM/SOURCE`)."""

from mlops_assets.streaming.ingestor import Ingested, ingest, produce

__all__ = ["Ingested", "ingest", "produce"]
