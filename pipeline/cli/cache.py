"""`gen cache`."""

import click

from pipeline.cli.flags import say_result
from pipeline.data import cache
from pipeline.reporting import table
from pipeline.resources import in_words


@click.command("cache")
@click.option("--clear", is_flag=True, help="Remove all that no command is using, downloads included.")
def cache_command(clear: bool) -> None:
    """Say which decoded and downloaded images, and judges of images, are kept, and how much they take.

    GEN_CACHE names another folder for them. With GEN_CACHE_GIB=20 those decoded sets that were not used for longest are
    removed, before others are decoded, so that all take 20 GiB at most.
    """
    if clear:
        removed, left = cache.clear()
        in_use = f"; {in_words(left)} are in use" if cache.entries() else ""
        say_result(f"removed {in_words(removed)} from {cache.cache_folder()}{in_use}")
        return
    entries, allowed = cache.entries(), cache.limit()
    limit = f"no limit; {cache.LIMIT} sets one" if allowed is None else f"at most {in_words(allowed)}"
    rows = [("cache", f"{cache.cache_folder()}, {in_words(cache.size_of(cache.cache_folder()))}")]
    sets = "1 data set" if len(entries) == 1 else f"{len(entries)} data sets"
    rows += [("decoded", f"{sets}, {in_words(sum(entry.size for entry in entries))}; {limit}")]
    rows += [(f"  {entry.data}", _in_words(entry)) for entry in reversed(entries)]
    rows += [("downloaded", in_words(cache.size_of(cache.downloads_folder())))]
    rows += [(f"  {name}", in_words(size)) for name, size in cache.downloads()]
    rows += [("judges", f"{len(cache.judges())}, {in_words(cache.size_of(cache.judges_folder()))}")]
    say_result(table(rows))


def _in_words(entry: cache.Entry) -> str:
    n, *one = entry.shape
    return f"{n:,} images of {' x '.join(map(str, one))}, {in_words(entry.size)}, last used {entry.used:%Y-%m-%d %H:%M}"


COMMANDS = (cache_command,)
