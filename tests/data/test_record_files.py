"""Files of records: one object a line or an array of them, compressed or not; what is none is named."""

import gzip
import json
from pathlib import Path

import pytest

from draftopd.data.files import read_file, stem
from draftopd.data.sources import JsonlPrompts
from draftopd.errors import DraftError
from prompt_sources import SPLITS, questions, texts

ROWS = questions(20)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
FILES = {
    "mine.jsonl": LINES,
    "mine.json": json.dumps(ROWS, indent=1).encode(),
    "mine.jsonl.gz": gzip.compress(LINES),
    "mine.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "mine.txt": b"\xef\xbb\xbf" + LINES,  # as editors of Windows write it
}


def test_every_kind_of_file_gives_the_same_prompts(tmp_path: Path) -> None:
    read = {}
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
        prompts = JsonlPrompts(str(tmp_path / name), val=4, test=4)
        read[name] = [texts(prompts, split) for split in SPLITS], prompts.split("test")[0].set, prompts.fingerprint
    assert all(found == read["mine.jsonl"] for found in read.values())
    assert [len(split) for split in read["mine.jsonl"][0]] == [12, 4, 4]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "mine.json",
            b'[\n {"prompt": "a"},\n {"prompt": "b"\n]\n',
            r"json begins like a JSON array and is none",
        ),
        ("mine.json", b'[{"prompt": "a"}, 3]', r"mine\.json record 2 is not an object"),
        ("mine.json", b"[]", r"mine\.json is empty: give at least one prompt"),
        ("mine.json", b'{\n "prompt": "a"\n}\n', r"mine\.json:1 is not JSON .* or one array of objects"),
        ("mine.jsonl.gz", gzip.compress(LINES)[:-20], r"mine\.jsonl\.gz cannot be unpacked \(.*\): make it anew"),
        (
            "mine.parquet",
            b"PAR1xx",
            r"is a Parquet file: read its folder with prompts=hub prompts\.path=/",
        ),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DraftError, match=message) as caught:
        JsonlPrompts(str(tmp_path / name)).split("train")
    assert "\n" not in str(caught.value)


def test_places_of_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n{}\n{}")
    (tmp_path / "b.json").write_text("[{}, {}]")
    assert [where for where, _ in read_file(tmp_path / "a.jsonl")] == [f"{tmp_path}/a.jsonl:2", f"{tmp_path}/a.jsonl:3"]
    assert [where for where, _ in read_file(tmp_path / "b.json")] == [f"{tmp_path}/b.json record {n}" for n in (1, 2)]
    assert stem("/x/my.data.jsonl.gz") == "my.data"
