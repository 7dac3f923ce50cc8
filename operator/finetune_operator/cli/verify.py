"""`finetune verify`: whether every output in storage is the one that the run's manifest lists, byte for byte."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from finetune_contract import paths
from finetune_contract.outcome import Manifest, OutputFile
from finetune_operator.cli.formats import add_format, is_json, show_json
from finetune_operator.cli.storage import StorageError, pieces, read

_EPILOG = """\
examples:
  finetune verify s3://models/support-bot/run-1
  finetune verify file:///tmp/out/run-1

s3://, gs:// and az:// are read with the credentials of your environment, as AWS_ACCESS_KEY_ID.
exit code: 0 if all files are there and right, 1 if not
"""


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found for a run's manifest."""

    manifest: Manifest
    sha256: str
    """Of manifest.json itself."""
    problems: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Size of all outputs."""
        return sum(file.bytes for file in self.manifest.files)

    def to_wire(self) -> dict[str, object]:
        """Return what was found as JSON."""
        found = {"sha256": self.sha256, "files": len(self.manifest.files), "bytes": self.bytes}
        return {**found, "problems": list(self.problems)}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "verify",
        help="check a run's outputs against its manifest",
        description="Read every output of a run and compare it with the sha256 in its manifest.json.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("uri", metavar="URI", help="folder of the run, as in status.outputs.uri")
    add_format(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check and say what was found."""
    try:
        verified = verify(arguments.uri)
    except StorageError as error:
        print(f"finetune verify: {error}", file=sys.stderr)
        return 1
    for problem in verified.problems:
        print(problem, file=sys.stderr)
    if is_json(arguments):
        show_json(verified.to_wire())
    elif not verified.problems:
        print(f"{len(verified.manifest.files)} files, {human_bytes(verified.bytes)}: all as in manifest.json")
    return 1 if verified.problems else 0


def verify(run_uri: str) -> Verified:
    """Compare everything below a run's folder with its manifest. Raises StorageError if that cannot be read."""
    uri = paths.join(run_uri, paths.MANIFEST)
    content = read(uri)
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise StorageError(f"{uri}: not a manifest of a run") from error
    problems = tuple(problem for file in manifest.files for problem in _problems(run_uri, file))
    return Verified(manifest, hashlib.sha256(content).hexdigest(), problems)


def _problems(run_uri: str, file: OutputFile) -> Iterator[str]:
    uri = paths.join(run_uri, file.path)
    digest, size = hashlib.sha256(), 0
    try:
        for piece in pieces(uri):
            digest.update(piece)
            size += len(piece)
    except StorageError as error:
        yield str(error)
        return
    if size != file.bytes:
        yield f"{uri}: has {size} bytes, the manifest lists {file.bytes}"
    elif digest.hexdigest() != file.sha256:
        yield f"{uri}: its sha256 is not the manifest's: it was changed or damaged"


def human_bytes(count: float) -> str:
    """Return a size for people, as 4.9 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:  # noqa: PLR2004 - decimal units
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
