"""Several files of one kind as one source, named by a pattern such as `shards/train-*.tar`."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.sources.base import Labelling, Source, natural
from pipeline.data.sources.labelling import numbered
from pipeline.errors import DataError


def is_pattern(path: Path) -> bool:
    """Whether a path stands for those that fit it: there is none of this very name, and `*`, `?` or `[` is in it."""
    return re.search(r"[*?[]", str(path)) is not None and not path.exists()


def files_of(pattern: Path) -> list[Path]:
    """The files that fit a pattern, in natural order of their names. Raises DataError where none does."""
    root = Path(pattern.anchor)
    found = sorted(root.glob(str(pattern.relative_to(root))), key=lambda path: natural(str(path)))
    files = [path for path in found if path.is_file()]
    if not files:
        raise DataError(f"no file fits {pattern}; {len(found)} folders do" if found else f"no file fits {pattern}")
    kinds = Counter(path.suffix.lower() for path in files)
    if len(kinds) > 1:
        counted = ", ".join(f"{count} {suffix}" for suffix, count in kinds.most_common())
        raise DataError(f"the files that fit {pattern} are of several kinds ({counted}); name those of one")
    return files


def joined(sources: Sequence[Source], paths: Sequence[Path], pattern: Path) -> Source:
    """The images of several archives in natural order. Raises DataError where two are called the same."""
    of = {name: source for source in sources for name in source.names}
    total = sum(len(source.names) for source in sources)
    if total > len(of):
        twice = [name for name, count in Counter(n for source in sources for n in source.names).items() if count > 1]
        raise DataError(
            f"the {len(paths)} files that fit {pattern} hold {total:,} images of {len(of):,} names: {twice[0]} is in "
            "several; an image needs a name of its own"
        )
    counts = Counter[str]()
    for source in sources:
        counts.update(dict(source.passed_over))
    return Source(
        tuple(sorted(of, key=natural)),
        lambda name: of[name].open(name),
        lambda name: of[name].size(name),
        "\n".join(f"{path.name}\n{source.stamp}" for path, source in zip(paths, sources, strict=True)),
        sources[0].largest,
        tuple(counts.most_common()),
        lambda: _labelling(sources, tuple(sorted(of, key=natural)), pattern),
    )


def _labelling(sources: Sequence[Source], names: Sequence[str], pattern: Path) -> Labelling | None:
    """The classes written down in all of the archives, each of which numbers its own."""
    classes: dict[str, str] = {}
    for source in sources:
        own = source.labelling()
        if own is not None:
            classes |= {name: own.class_names[label] for name, label in zip(source.names, own.labels, strict=True)}
    if classes and len(classes) < len(names):
        raise DataError(
            f"of {len(names):,} images in the files that fit {pattern}, {len(classes):,} have a class written beside "
            "them; give all of them one, or train with --no-labels"
        )
    return numbered([classes[name] for name in names]) if classes else None
