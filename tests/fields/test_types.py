from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpnas.fields.types import _TABLE, _TYPES, media_type


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"a.txt", b"text/plain; charset=utf-8"),
        (b"a.csv", b"text/csv; charset=utf-8"),
        (b"a.html", b"text/html; charset=utf-8"),
        (b"a.md", b"text/markdown; charset=utf-8"),
        (b"a.js", b"text/javascript; charset=utf-8"),
        (b"a.mjs", b"text/javascript; charset=utf-8"),
        (b"a.xml", b"text/xml"),
        (b"a.json", b"application/json"),
        (b"a.jsonl", b"application/jsonl"),
        (b"a.ndjson", b"application/x-ndjson"),
        (b"a.parquet", b"application/vnd.apache.parquet"),
        (b"a.wasm", b"application/wasm"),
        (b"a.webp", b"image/webp"),
        (b"a.avif", b"image/avif"),
        (b"a.woff2", b"font/woff2"),
        (b"a.mkv", b"video/matroska"),
        (b"a.opus", b"audio/ogg"),
        (b"a.flac", b"audio/flac"),
        (b"a.yaml", b"application/yaml"),
        (b"a.zst", b"application/zstd"),
        (b"a.csv.zst", b"application/zstd"),
        (b"a.tar.gz", b"application/gzip"),
        (b"a.tgz", b"application/gzip"),
        (b"a.sql.bz2", b"application/x-bzip2"),
        (b"a.txt.xz", b"application/x-xz"),
        (b"a.tar.Z", b"application/x-compress"),
        (b"a.JPG", b"image/jpeg"),
        (b"d.png/a.gif", b"image/gif"),
        (b"data:,a.png", b"image/png"),
        (b"a", None),
        (b"a.z", None),
        (b"a.unknown", None),
        (b".png", None),
        (b"png", None),
        (b"d.png/a", None),
        (b"a.", None),
        (b"", None),
    ],
)
def test_the_type_is_that_of_the_last_extension(name: bytes, kind: bytes | None) -> None:
    assert media_type(name) == kind


def test_each_extension_has_one_type() -> None:
    lines = [line.split() for line in _TABLE.splitlines()]
    assert len(_TYPES) == sum(len(extensions) for _, *extensions in lines)
    assert [kind for kind, *_ in lines] == sorted({kind for kind, *_ in lines})


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_name_has_a_type_or_none(name: str) -> None:
    media_type(name.encode())
