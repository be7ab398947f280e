"""What is in a folder of text files."""

from pathlib import Path


def visible_files(root: Path) -> list[Path]:
    """The files below a directory, relative to it and in sorted order; not those that are hidden, or in hidden ones."""
    files = sorted(file.relative_to(root) for file in root.rglob("*") if file.is_file())
    return [file for file in files if not any(name.startswith(".") for name in file.parts)]
