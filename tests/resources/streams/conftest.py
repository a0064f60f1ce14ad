"""The transports: files, a real Redis, and the Kafka brokers that librdkafka carries for tests."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest


@pytest.fixture(scope="session")
def kafka_url() -> Iterator[str]:
    """Real sockets that speak Kafka's protocol; a consumer is given its partitions after three seconds."""
    from confluent_kafka.admin import AdminClient

    cluster = AdminClient({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    brokers = cluster.list_topics(timeout=10).brokers.values()
    where = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
    yield f"kafka://{where}?session.timeout.ms=4000&heartbeat.interval.ms=200&log_level=0"
    del cluster  # it lives as long as its client


@pytest.fixture
def topic() -> str:
    """A name that no other test has; the Kafka brokers live as long as the session."""
    return f"topic-{uuid4().hex[:8]}"


@pytest.fixture(params=["spool", "redis", "kafka"])
def url(request: pytest.FixtureRequest, home: object) -> str:
    """Where each transport finds its topics; Kafka is slow to start, and asked in a few tests alone."""
    if request.param == "spool":
        from resources.streams import stream_url

        return stream_url()
    return str(request.getfixturevalue({"redis": "redis_url", "kafka": "kafka_url"}[request.param]))
