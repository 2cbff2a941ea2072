"""The app in a process of its own, for test_browser.py: rows are drawn slowly and counted, connections noted.

python -m tests.pipeline.serving.worker RUN PORT FOLDER
"""

import sys
import time
from pathlib import Path
from typing import Any

from pipeline import app
from pipeline.reporting import Lines
from stage2_prior import WatchedStepper
from tests.tiny import shapes

SIZE = (32, 32)
SECONDS_A_ROW = 0.3


def main() -> None:
    """Serve a run of the images that the test trains on."""
    run, port, folder = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    begin_row = WatchedStepper.begin_row

    def slowly(self: WatchedStepper, row: int) -> None:
        time.sleep(SECONDS_A_ROW)
        with (folder / "rows").open("a") as rows:
            rows.write(f"{row}\n")
        begin_row(self, row)

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            with (folder / "connections").open("a") as connections:
                connections.write(f"{event} {arguments[1:] if event == 'socket.connect' else arguments}\n")

    WatchedStepper.begin_row = slowly  # type: ignore[method-assign]
    sys.addaudithook(note)
    images, targets = shapes(size=SIZE)
    app(run, images=images, targets=targets, port=port, browser=False, reporter=Lines())


if __name__ == "__main__":
    main()
