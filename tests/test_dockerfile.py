"""What the Dockerfile must keep to, read from its text."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parents[1] / "docker" / "Dockerfile").read_text(encoding="utf-8")


def list_stages() -> dict[str, str]:
    """The text of each stage by its name."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", TEXT, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_what_the_lab_reads_is_copied_with_a_mode():
    """Under umask 077, a checkout's files are readable by their owner alone."""
    # A wheel has modes of its own.
    stages = {name: text for name, text in list_stages().items() if name != "wheel"}
    copies = [line for text in stages.values() for line in re.findall(r"^COPY .*", text, re.M)]
    assert len(copies) > 5
    for line in copies:
        folder = "docker/locks/" not in line
        assert line.startswith(f"COPY --chmod={755 if folder else 644} "), line


def test_the_base_can_be_named_by_digest_and_is_written_down():
    assert re.search(r"^ARG BASE_IMAGE=\S+$", TEXT, re.M)
    assert re.search(r"^FROM \$\{BASE_IMAGE\} AS os$", TEXT, re.M)
    assert 'org.opencontainers.image.base.name="${BASE_IMAGE}"' in list_stages()["lab"]
    assert re.search(r"^ARG BASE_IMAGE$", list_stages()["lab"], re.M)
