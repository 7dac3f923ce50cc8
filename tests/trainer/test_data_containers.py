"""The same records from every container, plain and compressed; what is broken is named by file and line."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import Use
from finetune_trainer.data import json_files
from finetune_trainer.data.files import data_files, matches
from finetune_trainer.data.problems import Problems
from finetune_trainer.data.read import records
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import open_store
from tests.support.datasets import COMPRESSIONS, CONTAINERS, array, lines, parquet, table, zstd

ROWS: list[dict[str, Any]] = [
    {"prompt": f'Où? {n}, "quoted"\nand broken', "completion": "là 🦙" * (n % 3 + 1)} for n in range(700)
]


def read(folder: Path, name: str, content: bytes) -> list[dict[str, Any]]:
    """Write a file and return its records. Raises DATASET_INVALID if there is a problem."""
    (folder / name).write_bytes(content)
    problems = Problems()
    found = [record.value for record in records(data_files(f"file://{folder}/{name}", folder), problems)]
    problems.raise_if_any()
    return found


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_gives_the_same_records(tmp_path: Path, container: str, compression: str) -> None:
    content = COMPRESSIONS[compression](CONTAINERS[container](ROWS))
    assert read(tmp_path, f"data{container}{compression}", content) == ROWS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.txt", gzip.compress(lines(ROWS))),
        ("lines.json", lines(ROWS)),
        ("array.jsonl", b"\xef\xbb\xbf \n" + json.dumps(ROWS).encode()),
        ("data", parquet(ROWS)),
        ("data.tsv", table(ROWS, delimiter="\t")),
        ("semicolons.csv", b"\xef\xbb\xbf" + table(ROWS, delimiter=";")),
        ("frames.jsonl.zst", zstd(lines(ROWS[:300])) + zstd(lines(ROWS[300:]))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_content_counts_more_than_the_name(tmp_path: Path, name: str, content: bytes) -> None:
    assert read(tmp_path, name, content) == ROWS


def test_what_a_table_has_no_value_for_is_not_there(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "Hi", "name": None}], "id": None}, {"messages": [], "id": 3}]
    assert read(tmp_path, "data.parquet", parquet(rows)) == [
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"messages": [], "id": 3},
    ]


def test_an_array_is_read_in_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [{"text": 'é\\"🦙' * n, "more": [1.5, None, True, {"a": []}]} for n in range(40)]
    for size in (1, 2, 3, 7, 64):
        monkeypatch.setattr(json_files, "PIECE", size)
        assert read(tmp_path, "data.json", array(values)) == values
        with pytest.raises(TrainerError, match=r"^data\.json item 2: is JSON but not an object: write {…}$"):
            read(tmp_path, "data.json", b'[{"a": 1}, 12345, {"a": 2}]')
    assert read(tmp_path, "data.json", b" [ ] \n") == []


GOOD = lines(ROWS[:3])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl.gz", gzip.compress(GOOD)[:-30], "a.jsonl.gz: is damaged or was cut off (it cannot be decompressed"),
        ("a.jsonl.bz2", COMPRESSIONS[".bz2"](GOOD)[:-20], "a.jsonl.bz2: is damaged or was cut off"),
        ("a.jsonl.xz", COMPRESSIONS[".xz"](GOOD)[:-40], "a.jsonl.xz: is damaged or was cut off"),
        ("a.jsonl.zst", zstd(lines(ROWS))[:-30], "a.jsonl.zst: is damaged or was cut off"),
        ("a.json", b'[{"a": 1},\n{"a"', "a.json line 2: the JSON array does not end: the file was cut off"),
        (
            "a.json",
            b'[{"a": 1},\n{"a" 2}, {"a": "much more text"}]',
            "a.json line 2: the JSON array is broken: Expecting",
        ),
        ("a.json", b'[{"a": 1}\n{"a": 2}]', "a.json line 2: the JSON array is broken: '{' where a comma or ] must"),
        ("a.json", b'[{"a": 1}]\n{"a": 2}', "a.json line 2: the JSON array is broken: '{' after the array's end"),
        ("a.json", b'[{"a": 1}, "two"]', "a.json item 2: is JSON but not an object: write {…}"),
        ("a.json", b"[" * 100_000, "a.json line 1: the JSON array is broken: nested too deeply"),
        ("a.json", '[{"a": "ù"}]'.encode("latin-1"), "a.json: is not UTF-8 after line 1 (byte 0xf9; Latin-1 perhaps)"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "a.csv line 3: has 3 cells, the header has 2: quote cells with commas"),
        ("a.csv", b'a,b\n"1\n2",2\n"open,2\n', "a.csv line 4: is not CSV: unexpected end of data; a quote inside"),
        ("a.csv", b'a,b\n"1" x,2\n', "a.csv line 2: is not CSV: ',' expected after '\"'"),
        ("a.csv", b"a,b,a\n1,2,3\n", "a.csv line 1: the header has 'a' twice: rename one"),
        ("a.csv", "a,b\nù,2\n".encode("latin-1"), "a.csv: is not UTF-8 near line 1 (byte 0xf9; Latin-1 perhaps)"),
        ("a.parquet", parquet(ROWS)[:-100], "a.parquet: is damaged Parquet or was cut off: upload it again"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_a_broken_file_is_named_with_what_to_do(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    with pytest.raises(TrainerError) as caught:
        read(tmp_path, name, content)
    assert caught.value.code == ExitCode.DATASET_INVALID
    assert says in caught.value.message


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_record_without_an_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(json_files, "LONGEST", 1 << 16)
    monkeypatch.setattr("finetune_trainer.data.tables.LONGEST", 1 << 16)
    start = {"a.jsonl": b'{"text": "', "a.json": b'[{"text": "', "a.csv": b'text\n"'}[name]
    with pytest.raises(TrainerError, match=r"longer than|larger than field limit"):
        read(tmp_path, name, start + b"x" * (8 << 20))


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_is_streamed(tmp_path: Path, container: str) -> None:
    rows = [{"text": f"{n} " + "words " * 2000} for n in range(2000)]
    (tmp_path / f"data{container}").write_bytes(CONTAINERS[container](rows))
    files = data_files(f"file://{tmp_path}/data{container}", tmp_path)
    del rows
    tracemalloc.start()
    try:
        assert sum(1 for _ in records(files, Problems())) == 2000
        assert tracemalloc.get_traced_memory()[1] < 12 << 20  # of 24 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("train-*.jsonl", {"train-0.jsonl", "train-1.jsonl"}),
        ("train-[1-9].jsonl", {"train-1.jsonl"}),
        ("train-[!0].jsonl", {"train-1.jsonl"}),
        ("*/train.*", {"de/train.jsonl"}),
        ("**/*.jsonl", {"train-0.jsonl", "train-1.jsonl", "test.jsonl", "de/train.jsonl", "de/old/train.jsonl"}),
        ("de/**", {"de/train.jsonl", "de/old/train.jsonl"}),
        ("t*n-0.jsonl", {"train-0.jsonl"}),
    ],
)
def test_patterns(pattern: str, names: set[str]) -> None:
    there = ["train-0.jsonl", "train-1.jsonl", "test.jsonl", "de/train.jsonl", "de/old/train.jsonl"]
    assert {name for name in there if matches(pattern, name)} == names


@pytest.mark.parametrize("where", ["s3", "file"])
def test_a_pattern_and_a_prefix_choose_the_data(bucket: str, tmp_path: Path, where: str) -> None:
    place = bucket if where == "s3" else f"file://{tmp_path}/data"
    store = open_store(place, Use.DATASET)
    names = (
        "train-0.csv.gz",
        "train-1.parquet",
        "test-0.jsonl",
        "_SUCCESS",
        ".part.jsonl",
        "dataset_info.json",
        "a.md",
    )
    for name in names:
        plain = name.removesuffix(".gz")
        content = CONTAINERS.get(Path(plain).suffix, lines)([{"text": name}])
        store.write(f"{place}/{name}", content if plain == name else gzip.compress(content))

    def texts(uri: str) -> list[str]:
        found = records(data_files(uri, tmp_path / "fetched"), Problems())
        return [record.value["text"] for record in found]

    assert texts(f"{place}/train-*") == ["train-0.csv.gz", "train-1.parquet"]
    assert texts(place) == ["test-0.jsonl", "train-0.csv.gz", "train-1.parquet"]
