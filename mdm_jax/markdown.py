"""Tables in Markdown, and pages that keep one between two markers."""

import pathlib
from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table.

    Args:
        header: a name for each column.
        rows: a text for each column.

    Examples:
        >>> print(markdown_table(("a", "b"), [("1", "2")]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fill_between_markers(page: pathlib.Path, name: str, text: str) -> None:
    r"""Replaces what stands between the two markers of a page.

    Args:
        page: a Markdown file with the lines ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.
        name: of the markers.
        text: what to put there.

    Raises:
        ValueError: if the markers are not there once each, in this order. The page is as it was.

    Examples:
        >>> import tempfile
        >>> page = pathlib.Path(tempfile.mkdtemp()) / "page.md"
        >>> _ = page.write_text("above\n<!-- t: begin -->\nold\n<!-- t: end -->\nbelow\n")
        >>> fill_between_markers(page, "t", "new")
        >>> page.read_text().splitlines()
        ['above', '<!-- t: begin -->', 'new', '<!-- t: end -->', 'below']
        >>> fill_between_markers(page, "u", "new")
        Traceback (most recent call last):
          ...
        ValueError: ...page.md: expected <!-- u: begin --> and <!-- u: end --> once each, in...
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, *rest = page.read_text().split(begin)
    after = rest[0].split(end) if len(rest) == 1 else []
    if len(after) != 2 or end in before:
        raise ValueError(f"{page}: expected {begin} and {end} once each, in this order")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after[1]}")
