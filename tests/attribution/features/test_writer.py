from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from biasdiff.attribution.features import durable
from biasdiff.attribution.features.store import open_store
from biasdiff.attribution.features.writer import FeatureWriter
from biasdiff.errors import ArtifactError, DataError, NonFiniteError

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ROWS, K = 23, 20
Write = Callable[..., Path]
Contents = Callable[[Path], dict[str, bytes]]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("shard_bytes", [1, 300, 2**28])
def test_rows_come_back_rounded_and_nothing_else(
    write_store: Write,
    numbers: Tensor,
    ids: list[str],
    dtype: str,
    normalised: bool,
    shard_bytes: int,
) -> None:
    if dtype == "float16" and not normalised:
        numbers *= 1e3  # or float16 would lose the smallest
    folder = write_store(dtype=dtype, normalised=normalised, shard_bytes=shard_bytes)
    store = open_store(folder)
    norms = numbers.norm(dim=1)
    rows = numbers / torch.where(norms > 0, norms, 1)[:, None] if normalised else numbers
    assert torch.equal(store.features(0, ROWS), rows.to(TYPES[dtype]).float())
    assert torch.equal(store.features(4, 11), store.features(0, ROWS)[4:11])
    assert torch.equal(torch.from_numpy(store.norms), norms)
    assert store.ids == ids
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "ids.json",
        *(shard.file for shard in store.manifest.shards),
    }
    assert len(store.manifest.shards) == {1: ROWS, 2**28: 1}.get(
        shard_bytes, len(store.manifest.shards)
    )


@pytest.mark.parametrize("dtype", TYPES)
def test_shards_are_safetensors_files(write_store: Write, numbers: Tensor, dtype: str) -> None:
    folder = write_store(dtype=dtype, shard_bytes=300)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 1
    shards = [load_file(file) for file in files]
    features = torch.cat([shard["features"] for shard in shards])
    assert features.dtype == TYPES[dtype]
    assert torch.equal(features.float(), open_store(folder).features(0, ROWS))
    assert torch.equal(torch.cat([shard["norms"] for shard in shards]), numbers.norm(dim=1))


def test_bfloat16_keeps_its_bits(write_store: Write, numbers: Tensor) -> None:
    store = open_store(write_store(dtype="bfloat16", normalised=False))
    bits = numbers.to(torch.bfloat16).view(torch.int16)
    found = store.features(0, ROWS).to(torch.bfloat16).view(torch.int16)
    assert torch.equal(found, bits)


def test_the_manifest_says_what_the_store_is(
    write_store: Write, made_from: dict[str, Any], ids: list[str]
) -> None:
    folder = write_store()
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = manifest.pop("shards")
    sha256 = manifest["ids"].pop("sha256")
    assert manifest == {
        "format": 1,
        **made_from,
        "rows": ROWS,
        "k": K,
        "dtype": "float16",
        "normalised": True,
        "ids": {"file": "ids.json"},
    }
    assert len(sha256) == 64
    assert json.loads((folder / "ids.json").read_text()) == ids
    assert [(s["file"], s["first"], s["rows"]) for s in shards] == [
        (f"features-0000{i}.safetensors", 6 * i, min(6, ROWS - 6 * i)) for i in range(4)
    ]
    assert all(len(shard["sha256"]) == 64 for shard in shards)


def test_the_same_bytes_whatever_the_batches(write_store: Write, contents: Contents) -> None:
    rows = list(range(ROWS))
    shuffled = np.random.default_rng(0).permutation(ROWS).tolist()
    batchings = [[rows], [[row] for row in shuffled], [shuffled[:10], shuffled[10:]]]
    expected = contents(write_store("plain"))
    for number, batches in enumerate(batchings):
        assert contents(write_store(f"store-{number}", batches=batches)) == expected


def test_given_norms_are_kept(
    tmp_path: Path, made_from: dict[str, Any], ids: list[str], numbers: Tensor
) -> None:
    norms = 2 * numbers.norm(dim=1) + 1
    with FeatureWriter(tmp_path / "s", made_from, ids, K, dtype="float32") as writer:
        writer.append(range(ROWS), numbers, norms)
        store = open_store(writer.finish())
    assert torch.equal(torch.from_numpy(store.norms), norms)
    assert torch.equal(store.features(0, ROWS), numbers / norms[:, None])


def started(folder: Path, made_from: dict[str, Any], ids: list[str]) -> FeatureWriter:
    return FeatureWriter(folder, made_from, ids, K, shard_bytes=6 * (2 * K + 4))


def test_an_unfinished_store_is_gone_on_with(
    tmp_path: Path,
    write_store: Write,
    contents: Contents,
    made_from: dict[str, Any],
    ids: list[str],
    numbers: Tensor,
) -> None:
    expected = contents(write_store("undisturbed"))
    folder = tmp_path / "store"
    writer = started(folder, made_from, ids)
    assert writer.missing == [range(ROWS)]
    writer.append([7, 2, 8], numbers[[7, 2, 8]])
    writer.append([22], numbers[[22]])
    writer.close()
    assert not folder.exists()
    again = started(folder, made_from, ids)
    assert again.missing == [range(2), range(3, 7), range(9, 22)]
    assert np.flatnonzero(again.written).tolist() == [2, 7, 8, 22]
    rest = np.flatnonzero(~again.written).tolist()
    again.append(rest, numbers[rest])
    assert again.finish() == folder
    assert contents(folder) == expected
    assert not folder.with_name("store.part").exists()


def test_another_size_of_shards_does_not_start_anew(
    tmp_path: Path, made_from: dict[str, Any], ids: list[str], numbers: Tensor
) -> None:
    with started(tmp_path / "store", made_from, ids) as writer:
        writer.append([1, 2], numbers[1:3])
    with FeatureWriter(tmp_path / "store", made_from, ids, K) as writer:
        assert np.flatnonzero(writer.written).tolist() == [1, 2]


@pytest.mark.parametrize("tail", [b'{"rows": [9', b'{"rows": [9], "crc32": [1]}', b"\x00\xff"])
def test_a_torn_line_of_the_journal(
    tmp_path: Path, made_from: dict[str, Any], ids: list[str], numbers: Tensor, tail: bytes
) -> None:
    with started(tmp_path / "store", made_from, ids) as writer:
        writer.append([1, 2], numbers[1:3])
    journal = tmp_path / "store.part" / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + tail)
    with started(tmp_path / "store", made_from, ids) as writer:
        assert np.flatnonzero(writer.written).tolist() == [1, 2]
        assert journal.read_bytes() == whole
        writer.append([9], numbers[[9]])
    with started(tmp_path / "store", made_from, ids) as writer:
        assert np.flatnonzero(writer.written).tolist() == [1, 2, 9]


@pytest.mark.parametrize(
    "line", [b"nonsense\n", b'{"rows": [7]}\n', b'{"rows": [99, -4], "crc32": [1, 1]}\n', b"[]\n"]
)
def test_a_damaged_line_of_the_journal(
    tmp_path: Path, made_from: dict[str, Any], ids: list[str], numbers: Tensor, line: bytes
) -> None:
    with started(tmp_path / "store", made_from, ids) as writer:
        writer.append([1, 2], numbers[1:3])
    journal = tmp_path / "store.part" / "journal.jsonl"
    journal.write_bytes(line + journal.read_bytes())
    with started(tmp_path / "store", made_from, ids) as writer:
        assert np.flatnonzero(writer.written).tolist() == [1, 2]


def test_rows_that_changed_on_the_disk_are_made_anew(
    tmp_path: Path,
    write_store: Write,
    contents: Contents,
    made_from: dict[str, Any],
    ids: list[str],
    numbers: Tensor,
) -> None:
    expected = contents(write_store("undisturbed"))
    folder = tmp_path / "store"
    with started(folder, made_from, ids) as writer:
        writer.append(range(ROWS), numbers)
    part = tmp_path / "store.part"
    first, second, third, fourth = sorted(part.glob("*.safetensors"))
    damaged = bytearray(first.read_bytes())
    damaged[-1] ^= 1  # the last number of row 5
    first.write_bytes(damaged)
    second.write_bytes(second.read_bytes()[:-1])
    third.unlink()
    header = bytearray(fourth.read_bytes())
    header[20] ^= 1
    fourth.write_bytes(header)
    with started(folder, made_from, ids) as writer:
        assert writer.missing == [range(5, ROWS)]
        writer.append(range(5, ROWS), numbers[5:])
        writer.finish()
    assert contents(folder) == expected


def test_a_row_that_changes_before_the_end_is_named(
    tmp_path: Path, made_from: dict[str, Any], ids: list[str], numbers: Tensor
) -> None:
    writer = started(tmp_path / "store", made_from, ids)
    writer.append(range(ROWS), numbers)
    file = tmp_path / "store.part" / "features-00001.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    message = "features-00001.safetensors changed on the disk after it was written, in rows 11; exp"
    with pytest.raises(DataError, match=message):
        writer.finish()
    assert writer.missing == [range(11, 12)]
    writer.append([11], numbers[[11]])
    assert open_store(writer.finish()).ids == ids


def test_a_finished_store_is_left_alone(
    write_store: Write, contents: Contents, made_from: dict[str, Any], ids: list[str]
) -> None:
    folder = write_store()
    before = contents(folder), {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with started(folder, made_from, ids) as writer:
        assert writer.missing == []
        with pytest.raises(ValueError, match="store is finished: open it again"):
            writer.append([0], torch.zeros(1, K))
        assert writer.finish() == folder
    assert before == (contents(folder), {p: p.stat().st_mtime_ns for p in folder.iterdir()})


def test_missing_rows_are_named(
    tmp_path: Path, made_from: dict[str, Any], ids: list[str], numbers: Tensor
) -> None:
    with started(tmp_path / "store", made_from, ids) as writer:
        writer.append([0, 4], numbers[[0, 4]])
        message = r"store.part lacks rows 1 to 3, 5 to 22; expected all 23 rows; append them before"
        with pytest.raises(DataError, match=message):
            writer.finish()
        for row in range(5, ROWS, 2):
            writer.append([row], numbers[[row]])
        with pytest.raises(DataError, match=r"lacks rows 1 to 3, 6, 8, 10 and 6 other ranges"):
            writer.finish()
    with pytest.raises(ValueError, match=r"the writer of .* is closed: open it again"):
        writer.append([0], numbers[[0]])


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"model": "zz99"}, r'model is "aa11"; expected model "zz99"; make the features anew in anoth'),
    ({"train_side": "less", "seed": 1}, r'train_side is "adam"; expected train_side "less"'),
    ({"projection": {"kind": "sjlt", "k": K, "nonzeros": 4}}, r"projection.nonzeros is 1; expect"),
    ({"extra": 1}, r"extra is absent; expected extra 1"),
]


@pytest.mark.parametrize(("change", "message"), OTHERS)
@pytest.mark.parametrize("finished", [True, False])
def test_features_made_from_something_else_are_refused(
    write_store: Write,
    contents: Contents,
    made_from: dict[str, Any],
    ids: list[str],
    change: dict[str, Any],
    message: str,
    finished: bool,
) -> None:
    folder = write_store()
    if not finished:
        folder.rename(folder.with_name("store.part"))
    place = folder if finished else folder.with_name("store.part")
    before = contents(place)
    with pytest.raises(DataError, match=message):
        started(folder, {**made_from, **change}, ids)
    with pytest.raises(DataError, match=r"rows is 23; expected rows 22"):
        started(folder, made_from, ids[:-1])
    with pytest.raises(DataError, match=r"ids.sha256 is "):
        started(folder, made_from, [*ids[:-1], "another"])
    with pytest.raises(DataError, match=r'dtype is "float16"; expected dtype "bfloat16"'):
        FeatureWriter(folder, made_from, ids, K, dtype="bfloat16")
    with pytest.raises(DataError, match=r"normalised is true; expected normalised false"):
        FeatureWriter(folder, made_from, ids, K, normalised=False)
    fewer = {key: value for key, value in made_from.items() if key != "model"}
    with pytest.raises(ValueError, match=r"the manifest lacks \['model'\] and sets \[\], expected"):
        started(folder, fewer, ids)
    assert contents(place) == before


def test_an_entry_the_store_has_beyond_those_wanted(
    tmp_path: Path, made_from: dict[str, Any], ids: list[str]
) -> None:
    started(tmp_path / "store", {**made_from, "epoch": 3}, ids).close()
    with pytest.raises(DataError, match="epoch is 3; expected epoch null"):
        started(tmp_path / "store", made_from, ids)


def test_names_that_are_taken(tmp_path: Path, made_from: dict[str, Any], ids: list[str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match=r"a has no manifest.json; expected a feature store; name"):
        started(tmp_path / "a", made_from, ids)
    (tmp_path / "a").rename(tmp_path / "b.part")
    message = r"b.part is no unfinished feature store \(it holds thesis.tex\); expected a folder th"
    with pytest.raises(ArtifactError, match=message):
        started(tmp_path / "b", made_from, ids)
    (tmp_path / "b").mkdir()
    message = r"b and b.part both exist; expected a finished store or an unfinished one; remove the"
    with pytest.raises(ArtifactError, match=message):
        started(tmp_path / "b", made_from, ids)
    assert (tmp_path / "b.part" / "thesis.tex").read_text() == "mine"


def failing(
    monkeypatch: pytest.MonkeyPatch, name: str, code: int, after: int, halfway: bool = False
) -> None:
    """Make a system call fail from the given call on."""
    real = getattr(os, name)
    calls = {"n": 0}

    def call(*arguments: Any) -> Any:
        calls["n"] += 1
        if calls["n"] <= after:
            return real(*arguments)
        if halfway and calls["n"] == after + 1:
            file, content, place = arguments
            return real(file, content[: len(content) // 2], place)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(durable.os, name, call)


def _append_threes(writer: FeatureWriter, numbers: Tensor) -> None:
    for first in (2, 5, 8):
        writer.append(range(first, first + 3), numbers[first : first + 3])


@pytest.mark.parametrize("after", [0, 1, 2, 5])
@pytest.mark.parametrize("halfway", [True, False])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_while_rows_are_written(
    tmp_path: Path,
    write_store: Write,
    contents: Contents,
    made_from: dict[str, Any],
    ids: list[str],
    numbers: Tensor,
    after: int,
    halfway: bool,
    code: int,
) -> None:
    expected = contents(write_store("undisturbed"))
    folder = tmp_path / "store"
    writer = started(folder, made_from, ids)
    writer.append([0, 1], numbers[:2])
    with pytest.MonkeyPatch.context() as monkeypatch:
        failing(monkeypatch, "pwrite", code, after, halfway)
        message = (
            r"no space left on the disk of .*store.part \((2|5) of 23 rows are written\); expected "
            r"room for 1,[0-9]{3} bytes in all; free some and start again: finished batches are kep"
        )
        with pytest.raises(ArtifactError, match=message):
            _append_threes(writer, numbers)
    kept = writer.written.copy()
    # There is room again: the same writer can go on, and so can a new one.
    if after % 2:
        writer.append([20], numbers[[20]])
        kept[20] = True
    writer.close()
    with started(folder, made_from, ids) as writer:
        assert (writer.written == kept).all()
        rest = np.flatnonzero(~kept).tolist()
        writer.append(rest, numbers[rest])
        writer.finish()
    assert contents(folder) == expected


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room cannot be reserved here")
@pytest.mark.parametrize("after", [0, 2])
def test_a_full_disk_is_found_before_any_work(
    tmp_path: Path,
    write_store: Write,
    contents: Contents,
    made_from: dict[str, Any],
    ids: list[str],
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    with monkeypatch.context() as patched:
        failing(patched, "posix_fallocate", errno.ENOSPC, after)
        with pytest.raises(ArtifactError, match=r"no space left .*\(0 of 23 rows are written\)"):
            started(tmp_path / "store", made_from, ids)
    assert contents(write_store("store")) == contents(write_store("undisturbed"))


def test_a_full_disk_while_the_store_is_sealed(
    tmp_path: Path,
    write_store: Write,
    contents: Contents,
    made_from: dict[str, Any],
    ids: list[str],
    numbers: Tensor,
) -> None:
    expected = contents(write_store("undisturbed"))
    for after in range(4):
        folder = tmp_path / f"store-{after}"
        writer = started(folder, made_from, ids)
        writer.append(range(ROWS), numbers)
        with pytest.MonkeyPatch.context() as monkeypatch:
            failing(monkeypatch, "fsync", errno.ENOSPC, after)
            if after < 3:  # manifest, folder, and the folder above
                with pytest.raises(ArtifactError, match="no space left on the disk"):
                    writer.finish()
            else:
                writer.finish()
        writer.close()
        with started(folder, made_from, ids) as writer:
            assert writer.missing == []
            writer.finish()
        assert contents(folder) == expected


def test_other_errors_of_the_disk_pass(
    tmp_path: Path, made_from: dict[str, Any], ids: list[str], numbers: Tensor
) -> None:
    with (
        started(tmp_path / "store", made_from, ids) as writer,
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        failing(monkeypatch, "pwrite", errno.EIO, 0)
        with pytest.raises(OSError, match="Input/output error"):
            writer.append([0], numbers[:1])


def test_short_writes_are_gone_on_with(
    write_store: Write, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(write_store("undisturbed"))
    real = os.pwrite
    monkeypatch.setattr(durable.os, "pwrite", lambda f, view, place: real(f, view[:7], place))
    assert contents(write_store("store")) == expected


def test_rows_are_on_the_disk_before_the_journal_names_them(
    tmp_path: Path,
    made_from: dict[str, Any],
    ids: list[str],
    numbers: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer = started(tmp_path / "store", made_from, ids)
    events: list[tuple[str, str]] = []
    pwrite, fsync = os.pwrite, os.fsync

    def name(file: int) -> str:
        return Path(f"/proc/self/fd/{file}").readlink().name

    monkeypatch.setattr(
        os, "pwrite", lambda f, c, p: (events.append(("write", name(f))), pwrite(f, c, p))[1]
    )
    monkeypatch.setattr(os, "fsync", lambda f: (events.append(("sync", name(f))), fsync(f))[1])
    writer.append([1, 7, 13], numbers[[1, 7, 13]])
    shards = {f"features-0000{i}.safetensors" for i in range(3)}
    assert {file for kind, file in events[:-2] if kind == "write"} == shards
    assert {file for kind, file in events[-5:-2] if kind == "sync"} == shards
    assert events[-2:] == [("write", "journal.jsonl"), ("sync", "journal.jsonl")]
    writer.close()


def test_features_that_cannot_be_stored(
    tmp_path: Path, made_from: dict[str, Any], ids: list[str], numbers: Tensor
) -> None:
    writer = FeatureWriter(tmp_path / "a", made_from, ids, K, normalised=False)
    numbers = numbers / numbers.norm(dim=1).clamp_min(1e-9)[:, None]
    huge, small, broken = numbers.clone(), numbers.clone(), numbers.clone()
    huge[3] *= 1e6
    small[7:18] *= 1e-7
    broken[2, 1], broken[4, 0] = float("nan"), float("inf")
    with pytest.raises(NonFiniteError, match="features of example-3 are not finite in float16; ex"):
        writer.append(range(ROWS), huge)
    message = "features of example-2, example-4 are not finite in float16; expected finite features"
    with pytest.raises(NonFiniteError, match=message):
        writer.append(range(ROWS), broken)
    message = (
        "example-7, .*, example-14 and 3 more are too small for float16; expected rows that keep "
        "their length within 1%; store them normalised, or as bfloat16 or float32"
    )
    with pytest.raises(DataError, match=message):
        writer.append(range(ROWS), small)
    with pytest.raises(NonFiniteError, match="example-6 are not finite"):
        writer.append([6], numbers[[6]], torch.tensor([float("inf")]))
    assert writer.missing == [range(ROWS)]
    with FeatureWriter(tmp_path / "b", made_from, ids, K) as normalised:
        normalised.append(range(ROWS), small)


def test_wrong_calls(
    tmp_path: Path, made_from: dict[str, Any], ids: list[str], numbers: Tensor
) -> None:
    writer = started(tmp_path / "store", made_from, ids)
    message = r"features and norms are \[\[3, 20\], \[2\]\], expected \[\[2, 20\], \[2\]\]"
    with pytest.raises(ValueError, match=message):
        writer.append([0, 1], numbers[:3])
    with pytest.raises(ValueError, match=r"\[\[2, 20\], \[3\]\], expected \[\[2, 20\], \[2\]\]"):
        writer.append([0, 1], numbers[:2], torch.ones(3))
    for rows in ([0, 0], [0, 23], [-1, 3]):
        with pytest.raises(
            ValueError, match=r"row numbers are .*, expected different ones below 2"
        ):
            writer.append(rows, numbers[:2])
    with pytest.raises(
        ValueError, match="a store of 0 rows with 20 numbers as float16, expected a"
    ):
        FeatureWriter(tmp_path / "x", made_from, [], K)
    with pytest.raises(ValueError, match=r"sets \['rows'\], expected all of"):
        started(tmp_path / "x", {**made_from, "rows": 4}, ids)
    with pytest.raises(ValueError, match="the manifest must hold JSON values only: Object of type"):
        started(tmp_path / "x", {**made_from, "model": Path("a")}, ids)
    assert not (tmp_path / "x.part").exists()
