import ast
import sys

import pytest

from mdm_jax.data import Documents, in_memory, python_documentation, sources, split, text_files

NUMBERED = [f"document {i}" for i in range(200)]


def test_text_files_reads_a_folder_recursively_and_raw(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    undecodable = b"caf\xe9 \xff\r\n\x00"
    (tmp_path / "b" / "latin.txt").write_bytes(undecodable)
    (tmp_path / "a.md").write_bytes(b"plain")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / ".git" / "config").write_bytes(b"hidden")
    documents = text_files(tmp_path)
    assert documents.texts == (b"plain", undecodable)
    assert [name.removeprefix(f"{tmp_path}/") for name in documents.names] == [
        "a.md",
        "b/latin.txt",
    ]


def test_text_files_takes_globs_and_single_files(tmp_path):
    for name in ("1.txt", "2.txt", "3.md", "[4].txt"):
        (tmp_path / name).write_text(name)
    assert text_files(f"{tmp_path}/?.txt").texts == (b"1.txt", b"2.txt")
    # A name with the characters of a pattern in it is a name first.
    assert text_files(tmp_path / "[4].txt").texts == (b"[4].txt",)


def test_text_files_expands_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("a")
    assert text_files("~/a.txt").texts == (b"a",)


def test_missing_and_empty_places_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file or folder.*absent"):
        text_files(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"no match as a glob.*\*\.txt"):
        text_files(tmp_path / "*.txt")
    with pytest.raises(ValueError, match="no text found in"):
        text_files(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="no text found in"):
        text_files(tmp_path)


def test_in_memory():
    documents = in_memory(["é", b"\xff", ""])
    assert documents == Documents(names=("0", "1"), texts=("é".encode(), b"\xff"))
    assert len(documents) == 2
    with pytest.raises(ValueError, match="no text found"):
        in_memory([])
    with pytest.raises(TypeError, match="list of documents, got one str"):
        in_memory("a text")


def test_python_documentation():
    documents = python_documentation()
    assert list(documents.names) == sorted(set(documents.names))
    assert all(documents.texts)
    by_name = dict(zip(documents.names, documents.texts, strict=True))
    assert b'"while"' in by_name["topics/while"]
    # Source order: module, then class, then method.
    assert by_name["modules/queue.py"].startswith(b"A multi-producer, multi-consumer queue.\n\n")
    assert not any("/test/" in name or "site-packages" in name for name in documents.names)
    assert 1_500_000 < sum(map(len, documents.texts)) < 5_000_000


def test_docstrings_come_in_source_order_wherever_they_are_defined():
    source = '''"""module"""
try:
    def first():
        """first"""
except ImportError:
    class Second:
        """second"""
        async def method(self):
            """method"""
        x = "not a docstring"
def empty():
    """   """
'''
    found = list(sources._docstrings(ast.parse(source)))
    assert found == ["module", "first", "second", "method"]


def test_a_docstring_is_kept_once_over_all_modules(tmp_path):
    (tmp_path / "a.py").write_text('"""one"""\ndef f():\n    """two"""\ndef g():\n    """two"""')
    (tmp_path / "b.py").write_text('"""one"""\ndef f():\n    """three \\d"""')
    (tmp_path / "c.py").write_text('"""three \\d"""')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "d.py").write_text('"""four"""')
    assert list(sources._module_docstrings(tmp_path)) == [
        ("a.py", "one\n\ntwo"),
        ("b.py", "three \\d"),
    ]


def test_stripped_pythons_are_named_as_such(tmp_path, monkeypatch):
    uncached = python_documentation.__wrapped__
    monkeypatch.setattr(sources.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"without the sources .* use text_files"):
        uncached()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(FileNotFoundError, match=r"without its documentation topics"):
        uncached()


def test_split_is_a_partition_with_about_the_share_asked_for():
    documents = in_memory(NUMBERED)
    train, held_out = split(documents, held_out=0.25)
    assert sorted(train.texts + held_out.texts) == sorted(documents.texts)
    assert 30 < len(held_out) < 70  # 50 expected; the standard deviation is 6
    assert split(documents, held_out=0.25) == (train, held_out)
    assert split(documents, held_out=0.25, seed=1)[1] != held_out


def test_split_never_moves_a_document():
    """Not when others come, go, change places or change names; and not between versions."""
    _, before = split(in_memory(NUMBERED), held_out=0.1)
    _, after = split(in_memory([f"new {i}" for i in range(100)] + NUMBERED[::-1]), held_out=0.1)
    old = {text.encode() for text in NUMBERED}
    assert set(after.texts) & old == set(before.texts)
    assert before.texts[:3] == (b"document 5", b"document 12", b"document 13")


def test_a_larger_share_only_adds():
    documents = in_memory(NUMBERED)
    small, large = (split(documents, held_out=share)[1] for share in (0.1, 0.3))
    assert set(small.texts) < set(large.texts)


def test_equal_documents_stay_together():
    train, held_out = split(in_memory(NUMBERED * 2), held_out=0.3)
    assert not set(train.texts) & set(held_out.texts)


def test_a_lone_document_is_cut_at_its_end():
    train, held_out = split(in_memory(["0123456789"]), held_out=0.2)
    assert train == Documents(("0[:8]",), (b"01234567",))
    assert held_out == Documents(("0[8:]",), (b"89",))


@pytest.mark.parametrize("texts", [["a", "b"], ["a"]])
def test_an_empty_side_is_an_error(texts):
    with pytest.raises(ValueError, match=r"=0\.001 splits .* 0 held out.* or change held_out$"):
        split(in_memory(texts), held_out=0.001)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 5])
def test_a_share_is_a_fraction(share):
    with pytest.raises(ValueError, match=f"strictly between 0 and 1, got {share}"):
        split(in_memory(NUMBERED), held_out=share)
