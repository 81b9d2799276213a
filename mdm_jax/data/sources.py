"""Where text comes from, and which of it is held out.

Documents are bytes, not strings: a file that is not valid UTF-8 is still text to a byte model, and
bits per byte need the byte count of what was really there.
"""

import ast
import dataclasses
import functools
import glob
import hashlib
import os
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

# Folders of the standard library that hold tests, or that are not the standard library at all.
_NOT_LIBRARY = {
    "__pycache__",
    "_bundled",
    "dist-packages",
    "idle_test",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
}


@dataclasses.dataclass(frozen=True, repr=False)
class Documents:
    """A corpus: one name and one non-empty text per document.

    Examples:
        >>> Documents(names=("a", "b"), texts=(b"to be", b"or not"))
        Documents(2 documents, 11 bytes)
    """

    names: tuple[str, ...]
    texts: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        size = sum(map(len, self.texts))
        return f"Documents({len(self)} documents, {size:,} bytes)"


def in_memory(texts: Sequence[str | bytes]) -> Documents:
    """Documents from a list of texts, named by their position; empty texts are left out.

    Raises:
        TypeError: If `texts` is a single text rather than a list of them.
        ValueError: If there is no text at all.

    Examples:
        >>> in_memory(["to be", "or not", ""]).names
        ('0', '1')
    """
    if isinstance(texts, str | bytes):
        raise TypeError(
            f"texts must be a list of documents, got one {type(texts).__name__}: pass [text], or "
            "text.split('\\n\\n') to make each paragraph a document"
        )
    return _documents(
        (
            (str(i), text.encode() if isinstance(text, str) else text)
            for i, text in enumerate(texts)
        ),
        source="the list of texts",
    )


def text_files(path: str | os.PathLike[str]) -> Documents:
    """Documents from a file, a folder (every file below it) or a glob: one document per file.

    Contents are kept byte for byte, whatever their encoding. Hidden files and empty files are left
    out. `**` in a glob crosses folders. Documents are sorted by path.

    Raises:
        FileNotFoundError: If nothing is at `path`.
        ValueError: If no file with text is at `path`.

    Examples:
        >>> here = os.path.dirname(__file__)
        >>> [os.path.basename(name) for name in text_files(f"{here}/so*.py").names]
        ['sources.py']
    """
    files = find_files(path)
    return _documents(((name, Path(name).read_bytes()) for name in files), source=repr(path))


def find_files(path: str | os.PathLike[str]) -> list[str]:
    """Files at a path: a file, all files below a folder, or those that match a glob; sorted.

    Hidden files are left out. `**` in a glob crosses folders.

    Raises:
        FileNotFoundError: If nothing is at `path`.

    Examples:
        >>> [os.path.basename(name) for name in find_files(f"{os.path.dirname(__file__)}/so*.py")]
        ['sources.py']
    """
    where = os.path.expanduser(os.fspath(path))
    if os.path.isdir(where):
        found = glob.glob(os.path.join(glob.escape(where), "**"), recursive=True)
    elif os.path.isfile(where):
        found = [where]
    else:
        found = glob.glob(where, recursive=True)
        if not found:
            raise FileNotFoundError(
                f"no such file or folder, and no match as a glob: {where!r} "
                f"(relative paths start at {os.getcwd()})"
            )
    return sorted(name for name in found if os.path.isfile(name))


@functools.cache
def python_documentation() -> Documents:
    """The Python documentation that ships with Python: about 2 MB of English, offline.

    Two kinds of document: the language reference's topics (`pydoc_data.topics`, what
    `help("LOOPING")` prints), and the docstrings of each standard-library module, read from its
    source in source order. A docstring met before, in any module, is left out, so that a copy
    cannot sit on both sides of a split. The text depends on the Python version and on nothing
    else. Takes a few seconds the first time in a process.

    Raises:
        FileNotFoundError: If this Python was installed without `pydoc_data` or without the sources
            of the standard library, as some stripped images and embedded builds are.

    Examples:
        >>> documents = python_documentation()
        >>> {name.split("/")[0] for name in documents.names} == {"topics", "modules"}
        True
    """
    library = Path(sysconfig.get_path("stdlib"))
    missing = f"Python at {library} was installed without %s; use text_files(path) instead"
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FileNotFoundError(missing % "its documentation topics (pydoc_data)") from error
    modules = list(_module_docstrings(library))
    if not modules:
        raise FileNotFoundError(missing % "the sources of its standard library (*.py)")
    named = [(f"topics/{name}", text.encode()) for name, text in topics.items()]
    named += [(f"modules/{name}", text.encode(errors="replace")) for name, text in modules]
    return _documents(sorted(named), source="the Python documentation")


def split(
    documents: Documents, held_out: float = 0.05, seed: int = 0
) -> tuple[Documents, Documents]:
    """Split `(train, held_out)` by document.

    A document is held out when the SHA-256 of `seed` and its bytes, read as a fraction of 2^256,
    is below `held_out`. So its side depends on nothing but itself: adding, removing, renaming or
    reordering other documents moves nothing, and equal documents land on the same side. The
    held-out share is `held_out` of the documents in expectation, not exactly.

    A lone document is cut instead: its last `held_out` share of bytes is held out.

    Raises:
        ValueError: If `held_out` is not strictly between 0 and 1, or a side would be empty.

    Examples:
        >>> split(in_memory([f"document {i}" for i in range(100)]), held_out=0.1)
        (Documents(86 documents, 937 bytes), Documents(14 documents, 153 bytes))
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must lie strictly between 0 and 1, got {held_out}")
    if len(documents) == 1:
        (name,), (text,) = documents.names, documents.texts
        cut = len(text) - round(held_out * len(text))
        sides = [(f"{name}[:{cut}]", text[:cut])], [(f"{name}[{cut}:]", text[cut:])]
    else:
        sides = [], []
        for name, text in zip(documents.names, documents.texts, strict=True):
            sides[hash_fraction(text, seed) < held_out].append((name, text))
    counts = [sum(len(text) > 0 for _, text in side) for side in sides]
    if not all(counts):
        raise ValueError(
            f"held_out={held_out} splits {documents} into {counts[0]} for training"
            f" and {counts[1]} held out, and both sides need one: give more or smaller documents, "
            "or change held_out"
        )
    train, rest = (_documents(side, source="the split") for side in sides)
    return train, rest


def hash_fraction(text: bytes, seed: int = 0) -> float:
    """A uniform number in [0, 1) that depends on `seed` and `text` alone, on every machine.

    A document is held out if it is below the held-out share.

    Examples:
        >>> round(hash_fraction(b"a document"), 4)
        0.1206
    """
    digest = hashlib.sha256(b"%d:" % seed + text).digest()
    return int.from_bytes(digest[:6], "big") / 2**48  # 48 bits: exact in a float


def _documents(named: Iterable[tuple[str, bytes]], source: str) -> Documents:
    kept = [(name, text) for name, text in named if text]
    if not kept:
        raise ValueError(f"no text found in {source}: at least one non-empty document is needed")
    names, texts = zip(*kept, strict=True)
    return Documents(names, texts)


def _module_docstrings(library: Path) -> Iterator[tuple[str, str]]:
    """Yields `(relative path, docstrings)` for each module of `library` that has new ones."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(library):
        folders[:] = sorted(set(folders) - _NOT_LIBRARY)  # prunes the walk
        for file in sorted(name for name in files if name.endswith(".py")):
            path = Path(folder, file)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the style of code that is only read here
                module = ast.parse(path.read_bytes())
            new = [text for text in dict.fromkeys(_docstrings(module)) if text not in seen]
            seen.update(new)
            if new:
                yield path.relative_to(library).as_posix(), "\n\n".join(new)


def _docstrings(node: ast.AST) -> Iterator[str]:
    """The docstrings of a module, its classes and its functions, in source order."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield text
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):  # most of the tree, and nothing is defined in there
            yield from _docstrings(child)
