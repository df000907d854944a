"""The bytes of a log that gzip, xz, bzip2 or zip may have compressed, from a file or a pipe."""

from __future__ import annotations

import io
import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO, cast

from labkit.files import open_packed
from labkit.known_errors.read import guess_encoding

# What reading a broken archive raises, besides OSError.
UNPACK_ERRORS = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
START_BYTES = 2**13
IN_MEMORY_BYTES = 2**26
_ZSTD = b"\x28\xb5\x2f\xfd"
# Control characters that logs have: bell, backspace, tab, line and page ends, escape.
_CONTROLS = frozenset(map(chr, range(32))) - frozenset("\a\b\t\n\v\f\r\x1b")
# Random bytes have 9 % of them, programs and pictures more; text in any encoding nearly none.
MOST_CONTROLS = 0.04


class LogContent(io.RawIOBase):
    """What a log's file or pipe holds, decompressed by what its first bytes say.

    Raises OSError for zstd, which Python's standard library does not read.
    """

    def __init__(self, source: BinaryIO) -> None:
        super().__init__()
        self._source = source
        self._file: BinaryIO | None = None
        packed = source.read(START_BYTES)
        self._file = _unpack(_Joined(packed, source), packed)
        self.start = packed if self._file is None else self._file.read(START_BYTES)
        self._rest = self.start

    def read(self, size: int = -1) -> bytes:
        """So many bytes at most; fewer before the end, too."""
        if self._rest:
            part, self._rest = self._rest[:size], self._rest[size:]
            return part
        return (self._file or self._source).read(size)

    def close(self) -> None:
        """Closes what decompresses; the file or pipe stays open."""
        if self._file is not None:
            self._file.close()
        super().close()

    @property
    def is_text(self) -> bool:
        """False if the content begins like a program, a picture or random bytes."""
        text = self.start.decode(guess_encoding(self.start), errors="replace")
        controls = sum(character in _CONTROLS for character in text)
        return controls <= MOST_CONTROLS * len(text)


class _Joined(io.RawIOBase):
    """The bytes that were read already, and then those of the source."""

    def __init__(self, start: bytes, source: BinaryIO) -> None:
        super().__init__()
        self._start, self._source = start, source

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self._start:
            return self._source.read(size)
        end = len(self._start) if size < 0 else size
        part, self._start = self._start[:end], self._start[end:]
        return part + self._source.read(-1) if size < 0 else part


class _Members(io.RawIOBase):
    """The files of a zip archive, one after the other."""

    def __init__(self, whole: BinaryIO) -> None:
        super().__init__()
        self._whole = whole
        self._parts = self._list_parts(zipfile.ZipFile(whole))

    def _list_parts(self, archive: zipfile.ZipFile) -> Iterator[bytes]:
        for member in archive.infolist():
            if not member.is_dir():
                with _open_member(archive, member) as file:
                    while part := file.read(START_BYTES):
                        yield part
                yield b"\n"

    def read(self, size: int = -1) -> bytes:
        return next(self._parts, b"")

    def close(self) -> None:
        self._whole.close()
        super().close()


def _open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return archive.open(member)
    except (RuntimeError, NotImplementedError) as error:  # it has a password, or another method
        raise OSError(str(error)) from error


def _unpack(file: _Joined, start: bytes) -> BinaryIO | None:
    """A reader of the decompressed bytes; None if they are not compressed."""
    if unpacked := open_packed(cast("BinaryIO", file), start):
        return unpacked
    if start.startswith(b"PK\x03\x04"):
        # A zip archive has its list at its end.
        whole = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES)  # noqa: SIM115
        try:
            shutil.copyfileobj(cast("BinaryIO", file), whole)
            return cast("BinaryIO", _Members(cast("BinaryIO", whole)))
        except BaseException:
            whole.close()
            raise
    if start.startswith(_ZSTD):
        raise OSError("zstd compressed it: zstd -dc FILE | labkit doctor --explain")
    return None
