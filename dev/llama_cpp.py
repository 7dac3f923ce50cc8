"""llama.cpp's converter from Hugging Face's layout to GGUF, kept in the trainer unchanged.

The package index has it in one place of known origin only: the source distribution of llama-cpp-python, which carries
llama.cpp's tree. This takes the files out of it; README.md beside them lists what was taken, with hashes.

    python -m dev.llama_cpp            # take the version named here
    python -m dev.llama_cpp --check    # is it still what was taken?
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.3.26"
SHA256 = "71b004d52a274273ae03ec954d62771d26c86f32193fd30be57601508bec0064"
TARGET = Path(__file__).parents[1] / "trainer/finetune_trainer/llama_cpp"
FAMILIES = (
    *("base", "llama", "mistral", "mistral3", "deepseek", "qwen", "gemma", "phi", "olmo", "gpt2", "gptneox", "granite"),
    *("mamba", "glm", "command_r", "starcoder", "stablelm", "falcon", "gpt_oss", "smallthinker"),
)
"""Modules that are kept: the families that people tune, and what those import."""
FILES = (
    "LICENSE",
    "convert_hf_to_gguf.py",
    "conversion/__init__.py",
    *(f"conversion/{name}.py" for name in FAMILIES),
)
README = """# llama.cpp's converter

`convert_hf_to_gguf.py` and the parts of `conversion/` for the families that people tune, unchanged, from the source
distribution llama-cpp-python {version} (sha256 {sha256}), which carries llama.cpp's tree. MIT licence: see LICENSE.
Not edited here: `python -m dev.llama_cpp` takes another version. Why: docs/adr/0007-gguf.md.

```
{files}
```
"""


def changed_files(folder: Path = TARGET) -> list[str]:
    """Return the files that are not what the README lists, that are missing, or that it does not know."""
    listed = re.findall(r"^([0-9a-f]{64})  (\S+)$", (folder / "README.md").read_text(), re.MULTILINE)
    wanted = {name: digest for digest, name in listed}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")} | {"LICENSE"}
    wrong = {name for name, digest in wanted.items() if _sha256(folder / name) != digest}
    return sorted(wrong | (there ^ wanted.keys()))


def take(folder: Path = TARGET) -> None:
    """Download the source distribution and copy the files out of it."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
        subprocess.run([*command, "--dest", scratch, f"llama-cpp-python=={VERSION}"], check=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        if _sha256(archive) != SHA256:
            raise SystemExit(f"{archive.name} is not what was reviewed: its sha256 differs")
        with tarfile.open(archive) as tar:
            for name in FILES:
                if member := tar.extractfile(f"llama_cpp_python-{VERSION}/vendor/llama.cpp/{name}"):
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(member.read())
    lines = "\n".join(f"{_sha256(folder / name)}  {name}" for name in FILES)
    (folder / "README.md").write_text(README.format(version=VERSION, sha256=SHA256, files=lines))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def main() -> None:
    """Take the files, or check them."""
    parser = argparse.ArgumentParser(prog="python -m dev.llama_cpp", description="Take llama.cpp's converter.")
    parser.add_argument("--check", action="store_true", help="say which files were changed here")
    if not parser.parse_args().check:
        take()
    if changed := changed_files():
        raise SystemExit(f"changed: {', '.join(changed)}")


if __name__ == "__main__":
    main()
