from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from biasdiff.attribution.features.store import missing_or_broken, open_store
from biasdiff.attribution.features.writer import FeatureWriter
from biasdiff.errors import DataError

ROWS, K = 23, 20
Write = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]

DIFFERENCES: list[tuple[dict[str, Any], str]] = [
    ({"model": "another"}, r'store: model is "aa11"; expected model "another"; make the features'),
    ({"adapter": "x"}, r'adapter is "bb22"; expected adapter "x"'),
    ({"dataset": "x"}, r'dataset is "cc33"; expected dataset "x"'),
    ({"train_side": "sgd"}, r'train_side is "adam"; expected train_side "sgd"'),
    ({"projection": {"kind": "none"}}, r'projection.kind is "sjlt"; expected projection.kind "non'),
    ({"projection": "none"}, r'projection is absent; expected projection "none"'),
    ({"seed": 7}, r"seed is 0; expected seed 7"),
    ({"rows": 24}, r"rows is 23; expected rows 24"),
    ({"k": 8192}, r"k is 20; expected k 8192"),
    ({"dtype": "float32"}, r'dtype is "float16"; expected dtype "float32"'),
    ({"normalised": False}, r"normalised is true; expected normalised false"),
    ({"epoch": 2}, r"epoch is absent; expected epoch 2"),
    ({"model": "aa11", "seed": 3, "k": 4}, r"seed is 0; expected seed 3"),
]


@pytest.mark.parametrize(("expected", "message"), DIFFERENCES)
def test_a_store_made_from_something_else(
    write_store: Write, expected: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_store(write_store(), expected)


def test_a_store_made_from_what_is_expected(write_store: Write, made_from: dict[str, Any]) -> None:
    store = open_store(write_store(), {**made_from, "rows": ROWS, "k": K})
    assert store.manifest.made_from == made_from
    some = {"projection": {"kind": "sjlt"}, "seed": 0}
    assert open_store(store.folder, some).ids == store.ids


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[:-10])
    elif how == "longer":
        file.write_bytes(content + b"\0")
    elif how == "header":
        content[12] ^= 1
        file.write_bytes(content)
    else:
        place = {"feature": -5, "norm": len(content) - 6 * 2 * K - 2}[how]
        content[place] ^= 4
        file.write_bytes(content)


FAULTS = {
    "missing": "is missing, with rows 6 to 11",
    "truncated": r"has \d+ bytes of \d+, with rows 6 to 11",
    "longer": r"has \d+ bytes of \d+, with rows 6 to 11",
    "header": "has another header, with rows 6 to 11",
    "feature": r"is corrupted \(another SHA-256\), with rows 6 to 11",
    "norm": r"is corrupted \(another SHA-256\), with rows 6 to 11",
}


@pytest.mark.parametrize("how", FAULTS)
def test_a_broken_shard_is_named_and_made_anew_alone(
    write_store: Write,
    contents: Contents,
    made_from: dict[str, Any],
    ids: list[str],
    numbers: Tensor,
    how: str,
) -> None:
    folder = write_store()
    whole = contents(folder)
    assert missing_or_broken(folder) == []
    damage(folder / "features-00001.safetensors", how)
    message = rf"store: features-00001.safetensors {FAULTS[how]}; expected shards as they were wri"
    with pytest.raises(DataError, match=message):
        open_store(folder)
    assert missing_or_broken(folder) == [range(6, 12)]
    others = {p: p.stat().st_mtime_ns for p in folder.glob("features-*") if "00001" not in p.name}
    with FeatureWriter(folder, made_from, ids, K) as writer:
        assert writer.missing == [range(6, 12)]
        assert not folder.exists(), "a broken store looks finished while it is mended"
        writer.append([11, 10], numbers[[11, 10]])
    with FeatureWriter(folder, made_from, ids, K) as writer:  # interrupted, and gone on with
        assert writer.missing == [range(6, 10)]
        writer.append(range(6, 10), numbers[6:10])
        writer.finish()
    assert contents(folder) == whole
    assert others == {path: path.stat().st_mtime_ns for path in others}
    assert missing_or_broken(folder) == []


def test_several_broken_shards(
    write_store: Write, made_from: dict[str, Any], ids: list[str], numbers: Tensor
) -> None:
    folder = write_store(shard_bytes=1)
    for row in (0, 3, 4, 9, 12, 22):
        (folder / f"features-{row:05d}.safetensors").unlink()
    message = (
        r"features-00000.safetensors is missing, with rows 0; .*00009.* with rows 9; and 2 mor"
    )
    with pytest.raises(DataError, match=message):
        open_store(folder)
    rows = [row for span in missing_or_broken(folder) for row in span]
    assert rows == [0, 3, 4, 9, 12, 22]
    with FeatureWriter(folder, made_from, ids, K) as writer:
        assert np.flatnonzero(~writer.written).tolist() == rows
        writer.append(rows, numbers[rows])
        writer.finish()
    open_store(folder)


def test_checksums_can_be_left_out(write_store: Write) -> None:
    folder = write_store()
    damage(folder / "features-00001.safetensors", "feature")
    open_store(folder, checksums=False)
    damage(folder / "features-00002.safetensors", "truncated")
    with pytest.raises(DataError, match=r"features-00002.safetensors has"):
        open_store(folder, checksums=False)


@pytest.mark.parametrize("missing", [True, False])
def test_a_broken_ids_file(
    write_store: Write, contents: Contents, made_from: dict[str, Any], ids: list[str], missing: bool
) -> None:
    folder = write_store()
    whole = contents(folder)
    if missing:
        (folder / "ids.json").unlink()
    else:
        (folder / "ids.json").write_text(json.dumps(ids[::-1]))
    found = "is missing" if missing else "is not the file that was written"
    with pytest.raises(
        DataError, match=rf"ids.json {found}; expected SHA-256 .{{64}}; make the fe"
    ):
        open_store(folder)
    with FeatureWriter(folder, made_from, ids, K) as writer:
        assert writer.missing == []
        writer.finish()
    assert contents(folder) == whole


def test_no_store(tmp_path: Path, made_from: dict[str, Any], ids: list[str]) -> None:
    with pytest.raises(DataError, match=r"nothing has no manifest.json; expected a feature store"):
        open_store(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"nothing has no manifest.json"):
        missing_or_broken(tmp_path / "nothing")
    FeatureWriter(tmp_path / "half", made_from, ids, K).close()
    message = (
        r"half is unfinished: there is only half.part; expected a finished feature store; make"
    )
    with pytest.raises(DataError, match=message):
        open_store(tmp_path / "half")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            r"manifest.json is not whole \(JSONDecodeError: .*\); expected the manifest of a feat",
        ),
        ('{"format": 1}', r"manifest.json is not whole \(KeyError: 'shards'\)"),
        ("[]", r"manifest.json is not whole \(TypeError"),
    ],
)
def test_a_broken_manifest(write_store: Write, text: str, message: str) -> None:
    folder = write_store()
    (folder / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=message):
        open_store(folder)


@pytest.mark.parametrize(("key", "value"), [("format", 2), ("dtype", "float8")])
def test_another_format(write_store: Write, key: str, value: Any) -> None:
    folder = write_store()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, key: value}))
    message = r"has format \d with dtype '.*'; expected format 1 with one of float32, float16, bfl"
    with pytest.raises(DataError, match=message):
        open_store(folder)
