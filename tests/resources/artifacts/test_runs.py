"""The artifacts of runs in a directory, behind a tracking server and on S3: stored once, read whole or refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from resources.artifacts import runs
from resources.artifacts.manifest import DamagedArtifactError, Manifest, file_hash
from resources.artifacts.runs import ForeignArtifactsError

TRACKING = "sqlite://"


@pytest.fixture(params=["directory", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path, home: Path) -> str:
    """Where an experiment keeps its artifacts."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/experiment"
    return (tmp_path / "experiment").as_uri()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    bundle = tmp_path / "bundle"
    (bundle / "model").mkdir(parents=True)
    (bundle / "model" / "model.ubj").write_bytes(os.urandom(200_000))
    (bundle / "plan.json").write_text("{}")
    return bundle


def publish(location: str, run: str, bundle: Path) -> str:
    """The digest of what was published."""
    return runs.published(bundle, f"{location}/{run}/artifacts", "bundle", TRACKING).digest


def fetch(location: str, run: str, digest: str | None) -> Path:
    return runs.fetched(f"{location}/{run}/artifacts/bundle", run, TRACKING, digest)


def stored(location: str, tmp_path: Path) -> int:
    """The bytes that lie there; a file with many names once."""
    if location.startswith("s3"):
        import boto3

        bucket, _, prefix = location.removeprefix("s3://").partition("/")
        listed = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix)
        return sum(item["Size"] for item in listed.get("Contents", []))
    files = {path.stat().st_ino: path.stat().st_size for path in (tmp_path / "experiment").rglob("*") if path.is_file()}
    return sum(files.values())


def test_a_model_saved_twice_is_stored_once(location: str, bundle: Path, tmp_path: Path) -> None:
    """Ten runs of the same model take the space of one, and a manifest each."""
    digests = {publish(location, f"run{number}", bundle) for number in range(10)}
    assert len(digests) == 1 and 200_000 < stored(location, tmp_path) < 204_000
    for run in ("run0", "run9"):
        fetched = fetch(location, run, digests.copy().pop())
        assert Manifest.of(fetched) == Manifest.of(bundle)


def test_reading_again_downloads_nothing(location: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was put together once is only verified."""
    digest = publish(location, "run", bundle)
    first = fetch(location, "run", digest)
    monkeypatch.setattr(runs, "_downloaded", lambda *_: pytest.fail("downloaded again"))
    assert fetch(location, "run", digest) == first


def test_publishing_again_replaces_and_is_no_mixture(location: str, bundle: Path) -> None:
    """Work that was taken up again publishes under the same run: a file that is gone is gone."""
    publish(location, "run", bundle)
    (bundle / "plan.json").unlink()
    (bundle / "model" / "model.ubj").write_bytes(b"another")
    digest = publish(location, "run", bundle)
    fetched = fetch(location, "run", digest)
    assert sorted(path.name for path in fetched.rglob("*") if path.is_file()) == ["model.ubj"]


def test_publishing_the_same_again_touches_nothing(bundle: Path, tmp_path: Path, home: Path) -> None:
    """A version that is in use is never without its files for a moment."""
    location = (tmp_path / "experiment").as_uri()
    digest = publish(location, "run", bundle)
    before = {path: path.stat().st_ctime_ns for path in (tmp_path / "experiment").rglob("*")}
    assert publish(location, "run", bundle) == digest
    assert {path: path.stat().st_ctime_ns for path in (tmp_path / "experiment").rglob("*")} == before


def test_other_artifacts_than_were_registered_are_refused(location: str, bundle: Path) -> None:
    """They are whole, but not what the version was made of."""
    registered = publish(location, "run", bundle)
    (bundle / "plan.json").write_text('{"other": 1}')
    publish(location, "run", bundle)
    with pytest.raises(ForeignArtifactsError, match=f"other artifacts than those.*{registered[:16]}"):
        fetch(location, "run", registered)


def test_a_directory_of_a_run_is_plain_files(bundle: Path, tmp_path: Path, home: Path) -> None:
    """MLflow's own client reads them without this library."""
    from mlflow.artifacts import download_artifacts

    location = (tmp_path / "experiment").as_uri()
    publish(location, "run", bundle)
    got = Path(download_artifacts(f"{location}/run/artifacts/bundle", dst_path=str(tmp_path / "got")))
    assert Manifest.of(got) == Manifest.of(bundle)


def test_a_blob_that_was_changed_where_it_is_stored_is_refused(s3: str, bundle: Path, home: Path) -> None:
    """By the name that the model has for it; nothing of it stays here."""
    import boto3

    digest = publish(f"{s3}/experiment", "run", bundle)
    content = file_hash(bundle / "model" / "model.ubj")
    bucket = s3.removeprefix("s3://")
    boto3.client("s3").put_object(Bucket=bucket, Key=f"experiment/objects/{content[:2]}/{content}", Body=b"x" * 200_000)
    with pytest.raises(DamagedArtifactError, match=r"bundle/model/model.ubj was changed where it is stored"):
        fetch(f"{s3}/experiment", "run", digest)
    assert not (home / "mlflow" / "downloads" / "run" / "bundle").exists()


def test_a_download_that_was_harmed_here_is_fetched_again(s3: str, bundle: Path, home: Path) -> None:
    """What is stored elsewhere is whole, and so the copy here is mended."""
    digest = publish(f"{s3}/experiment", "run", bundle)
    model = fetch(f"{s3}/experiment", "run", digest) / "model" / "model.ubj"
    model.chmod(0o644)
    model.write_bytes(b"harmed")
    assert Manifest.of(fetch(f"{s3}/experiment", "run", digest)).digest == digest


def test_a_broken_upload_is_uploaded_again(s3: str, bundle: Path, home: Path) -> None:
    """Half a blob is known by its size."""
    import boto3

    content = file_hash(bundle / "model" / "model.ubj")
    bucket = s3.removeprefix("s3://")
    boto3.client("s3").put_object(Bucket=bucket, Key=f"experiment/objects/{content[:2]}/{content}", Body=b"half")
    digest = publish(f"{s3}/experiment", "run", bundle)
    assert Manifest.of(fetch(f"{s3}/experiment", "run", digest)) == Manifest.of(bundle)


def test_artifacts_without_a_manifest_are_read_as_they_are(location: str, bundle: Path, tmp_path: Path) -> None:
    """Those of before, or of another tool."""
    runs._repository(f"{location}/old/artifacts", TRACKING).log_artifacts(str(bundle), "bundle")
    assert Manifest.of(fetch(location, "old", None)) == Manifest.of(bundle)
    assert runs.digest(f"{location}/old/artifacts/bundle", TRACKING) is None
