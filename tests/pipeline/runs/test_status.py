"""status.json says how far a run is and how it ended, whatever ended it; `gen status` shows it to others."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner, Result

from pipeline import DivergedError, UsageError, generate_files, train_prior, train_vqvae
from pipeline.cli.main import main
from pipeline.errors import FolderInUseError, InterruptedRunError
from pipeline.reporting import Silent
from pipeline.runs.overview import overview, runs_in
from pipeline.runs.status import Status
from pipeline.runs.writer import as_json, now
from pipeline.sampling.samplers import CodeSampler
from pipeline.storage import write_json
from tests.pipeline.training.test_prior_training import OVERFIT
from tests.tiny import TINY_PRIOR, TINY_VQVAE, shapes

ROOT = Path(__file__).parents[3]
IMAGES, TARGETS = shapes()
STATUS = "status.json"


class Meanwhile(Silent):
    """A reporter that does something else before step 4 of a loop, and keeps what is said."""

    def __init__(self, action: Callable[[], object] = lambda: None, loop: str = "vqvae") -> None:
        self.action, self.loop, self.said = action, loop, ""

    def say(self, text: str) -> None:
        self.said += f"{text}\n"

    def steps(self, steps: range, description: str) -> Iterator[int]:
        for step in steps:
            if description == self.loop and step == min(4, steps.stop - 1):
                self.action()
            yield step


def stage1(out: Path, **options: Any) -> None:
    train_vqvae(out=out, images=IMAGES, targets=TARGETS, **{**TINY_VQVAE, **options})


def stage2(run: Path, **options: Any) -> None:
    train_prior(run, images=IMAGES, targets=TARGETS, force=True, **{**TINY_PRIOR, **options})


def status(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / STATUS).read_text())
    return content


def outcome(run: Path) -> tuple[str, str, int | None, str | None]:
    now_there = status(run)
    return now_there["stage"], now_there["state"], now_there["exit_code"], now_there["error"]


def gen_status(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["status", *map(str, arguments)])


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def act() -> NoReturn:
        raise error

    return act


def test_while_a_training_runs_and_when_it_has_finished(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    shown: list[str] = []

    def note() -> None:
        seen.append(status(tmp_path / "run"))
        shown.append(gen_status(tmp_path / "run").output)

    stage1(tmp_path / "run", reporter=Meanwhile(note))
    [during], after = seen, status(tmp_path / "run")
    assert (during["stage"], during["state"], during["exit_code"], during["total_steps"]) == (
        "vqvae",
        "running",
        None,
        12,
    )
    assert during["step"] == 4 and (during["host"], during["process_id"]) == (socket.gethostname(), os.getpid())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", during["since"]) and during["updated"] >= during["since"]
    assert re.match(r"run  running  vqvae  4 of 12 \(33%\), \d+ s left", shown[0]), shown
    assert outcome(tmp_path / "run") == ("vqvae", "finished", 0, None) and after["step"] == after["total_steps"] == 12
    with pytest.raises(UsageError):  # there is nothing left to do
        stage1(tmp_path / "run", resume="auto")
    assert status(tmp_path / "run") == after


def test_the_file_says_the_last_of_several_stages(tmp_path: Path) -> None:
    stages: list[str] = []

    class Noting(Silent):
        def steps(self, steps: range, description: str) -> Iterator[int]:
            stages.append(f"{status(tmp_path / 'run')['stage']} {description}")
            return super().steps(steps, description)

    stage1(tmp_path / "run", levels=2, downsampling=2)
    stage2(tmp_path / "run", reporter=Noting())
    assert list(dict.fromkeys(stages)) == ["codes encode", "prior/0 prior/0", "prior/1 prior/1"]
    assert outcome(tmp_path / "run") == ("prior/1", "finished", 0, None)


def test_a_training_that_stops_early_says_so(tmp_path: Path, trained: Path) -> None:
    train_prior(trained, out=tmp_path / "run", images=IMAGES, targets=TARGETS, **{**OVERFIT, "steps": 100})
    assert outcome(tmp_path / "run") == ("prior/0", "stopped early", 0, None)
    assert status(tmp_path / "run")["step"] < 100


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DivergedError("first line\nlast line"), ("failed", 5, "last line")),
        (OSError(errno.ENOSPC, "No space left on device"), ("failed", 6, "[Errno 28] No space left on device")),
        (MemoryError(), ("failed", 6, "MemoryError")),
        (KeyError("a fault of ours"), ("failed", 1, "'a fault of ours'")),
        (KeyboardInterrupt(), ("interrupted", 130, None)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_training_that_fails_says_why(
    tmp_path: Path, error: BaseException, expected: tuple[str, int, str | None]
) -> None:
    with pytest.raises(type(error)) as caught:
        stage1(tmp_path / "run", reporter=Meanwhile(raising(error)))
    assert caught.value is error
    assert outcome(tmp_path / "run") == ("vqvae", *expected)


def test_the_code_in_the_file_is_that_of_the_command(tmp_path: Path) -> None:
    command = ["train-vqvae", "--preset", "tiny", "--out", str(tmp_path / "run"), "--batch-size", "8", "--quiet"]
    result = CliRunner().invoke(main, [*command, "--steps", "6", "--learning-rate", "1e30"])
    assert result.exit_code == status(tmp_path / "run")["exit_code"] == 5
    again = CliRunner().invoke(main, command)
    assert again.exit_code == status(tmp_path / "run")["exit_code"] == 2
    assert str(outcome(tmp_path / "run")[3]) in again.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_outside_the_loop_is_written_down_too(tmp_path: Path, trained: Path, number: signal.Signals) -> None:
    shutil.copytree(trained / "vqvae", tmp_path / "run" / "vqvae")
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as caught:
            stage2(tmp_path / "run", reporter=Meanwhile(lambda: signal.raise_signal(number), "encode"))
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert caught.value.code == 128 + number
    assert outcome(tmp_path / "run") == ("codes", "interrupted", 128 + number, None)
    assert not [*tmp_path.rglob(".lock.json")]


def test_a_status_that_cannot_be_written_stops_and_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: Mapping[str, object]) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("pipeline.runs.status.write_json", full)
    reporter = Meanwhile()
    stage1(tmp_path / "run", reporter=reporter)
    assert reporter.said.count("status.json cannot be written (No space left on device)") == 1
    with pytest.raises(DivergedError):
        stage1(tmp_path / "other", learning_rate=1e30)


def test_a_command_that_is_refused_leaves_the_status_of_the_other(tmp_path: Path) -> None:
    def begin_another() -> None:
        before = status(tmp_path / "run")
        with pytest.raises(FolderInUseError):
            stage1(tmp_path / "run", resume="auto")
        assert status(tmp_path / "run") == before

    stage1(tmp_path / "run", reporter=Meanwhile(begin_another))


def test_a_file_that_another_running_process_keeps_is_left_alone(tmp_path: Path, trained: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    other = saved(host=socket.gethostname(), process_id=os.getppid())
    write_json(run / STATUS, as_json(other))
    generate_files(run, n=2)
    assert status(run) == as_json(other)
    write_json(run / STATUS, as_json(replace(other, state="failed")))
    generate_files(run, n=3)
    assert outcome(run) == ("samples", "finished", 0, None)


def test_sampling_belongs_to_a_run_only_within_it(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = status(run)
    generate_files(run, n=2, out=tmp_path / "elsewhere")
    assert status(run) == before and not (tmp_path / "elsewhere" / STATUS).exists()
    draw = CodeSampler.sample

    def interrupted(sampler: CodeSampler, *arguments: Any) -> object:
        signal.raise_signal(signal.SIGINT)
        return draw(sampler, *arguments)

    monkeypatch.setattr(CodeSampler, "sample", interrupted)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(InterruptedRunError):
            generate_files(run, n=4, batch_size=2)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert outcome(run) == ("samples", "interrupted", 130, None)


def saved(**changes: Any) -> Status:
    """A training that did 100 of its 900 steps in 40 seconds, by a process of another host."""
    status = Status(
        command="gen train-vqvae",
        host="node17",
        process_id=2**22 + 1,  # larger than any process of Linux has
        since=now() - timedelta(seconds=40),
        updated=now(),
        stage="vqvae",
        state="running",
        first_step=100,
        step=200,
        total_steps=1000,
    )
    return replace(status, **changes)


def saved_run(folder: Path, **changes: Any) -> Path:
    """A run that holds no more than a status and two lines of metrics, one of them half written."""
    (folder / "vqvae").mkdir(parents=True)
    write_json(folder / STATUS, as_json(saved(**changes)))
    (folder / "vqvae" / "metrics.jsonl").write_text('{"step": 9, "validation_nmse": 0.25}\n{"step": 10, "validation_')
    return folder


def test_every_state_of_a_run_is_shown_in_a_line(tmp_path: Path, trained: Path) -> None:
    runs = tmp_path / "runs"
    here = {"host": socket.gethostname()}
    saved_run(runs / "alive", **here, process_id=os.getpid())
    saved_run(runs / "dead", **here)
    saved_run(runs / "reused", **here, process_id=os.getpid(), since=now() - timedelta(days=9999))
    saved_run(runs / "elsewhere")
    saved_run(runs / "failed", state="failed", exit_code=5, error="the loss is nan")
    shutil.copytree(trained, runs / "compared" / "old")
    (runs / "compared" / "old" / STATUS).unlink()
    for name, content in {"half": '{"state": "run', "other": "[]", "strange": '{"state": "asleep"}'}.items():
        (runs / name).mkdir()
        (runs / name / STATUS).write_text(content)
    (runs / "folder" / STATUS).mkdir(parents=True)
    (runs / "no-run").mkdir()
    result = gen_status(runs)
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in result.output.splitlines()}
    assert list(lines) == [path.relative_to(runs).as_posix() for path in runs_in(runs)]
    assert list(lines) == [
        "alive", "compared/old", "dead", "elsewhere", "failed", "folder", "half", "other", "reused", "strange",
    ]  # fmt: skip
    assert re.match(r"running vqvae 200 of 1,000 \(20%\), [45] min left nmse 0.25 since 20\d\d-", lines["alive"])
    assert re.match(rf"gone vqvae 200 of .*process {2**22 + 1} is no longer there, and said last", lines["dead"])
    assert lines["reused"].startswith("gone ") and "left" not in lines["reused"]
    assert re.match(rf"elsewhere .* process {2**22 + 1} on host node17, heard of last at", lines["elsewhere"])
    assert lines["failed"].endswith("exit code 5: the loss is nan")
    assert lines["compared/old"].startswith("finished prior/0 ")
    for name in ("folder", "half", "other", "strange"):
        assert lines[name].startswith("unreadable ") and STATUS in lines[name]


@pytest.mark.parametrize("value", ["[[1]]", '"x"', "null", "{}", "[" * 100_000, "1" * 5000])
def test_metrics_that_are_no_numbers_are_left_out(tmp_path: Path, value: str) -> None:
    log = saved_run(tmp_path / "run") / "vqvae" / "metrics.jsonl"
    log.write_text(f'{{"step": 9, "validation_nmse": 0.25}}\n{{"step": 10, "validation_nmse": {value}}}\n')
    for arguments in ([], ["--json"]):
        result = gen_status(tmp_path, *arguments)
        assert result.exit_code == 0 and "run" in result.output, result.output


def test_one_json_object_a_run(tmp_path: Path) -> None:
    saved_run(tmp_path / "one", state="finished", exit_code=0)
    saved_run(tmp_path / "two")
    one, two = map(json.loads, gen_status(tmp_path, "--json").output.splitlines())
    assert (one["state"], one["exit_code"], one["seconds_left"]) == ("finished", 0, None)
    assert (two["run"], two["state"], two["validation"]) == (str(tmp_path / "two"), "elsewhere", {"nmse": 0.25})
    assert 100 < two["seconds_left"] <= 320 and two["since"].startswith("20")
    assert json.loads(gen_status(tmp_path / "two", "--json").output) == two


def test_where_there_is_no_run_that_is_said() -> None:
    result = gen_status()
    assert result.exit_code == 2 and "there is no run in " in result.output and "runs; name a run" in result.output


def until(holds: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    for _ in range(1200):
        if holds():
            return
        time.sleep(0.05)
    raise TimeoutError


def test_of_two_processes_one_is_terminated_and_one_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "train-vqvae", "--preset", "tiny", "--steps", "100000", "--batch-size"]
    command += ["8", "--evaluations", "10000", "--quiet", "--out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    runs = [tmp_path / "terminated", tmp_path / "killed"]
    first, second = (subprocess.Popen([*command, str(run)], env=environment) for run in runs)
    try:
        until(lambda: all(overview(run).validation for run in runs if run.exists()) and len(runs_in(tmp_path)) == 2)
        assert [overview(run).state for run in runs] == ["running", "running"]
        with pytest.raises(
            FolderInUseError, match=rf"`python.* train-vqvae .*process {first.pid} on host .*, since 20"
        ):
            train_vqvae(out=runs[0], resume="auto")
        first.send_signal(signal.SIGTERM)
        second.kill()
        assert first.wait(60) == 143 and second.wait(60) == -signal.SIGKILL
    finally:
        first.kill()
        second.kill()
    assert outcome(runs[0]) == ("vqvae", "interrupted", 143, None)
    assert outcome(runs[1]) == ("vqvae", "running", None, None)
    assert [overview(run).state for run in runs] == ["interrupted", "gone"]
    assert f"process {second.pid} is no longer there" in gen_status(tmp_path).output
    with pytest.raises(UsageError, match="--steps 1 is less than"):  # the folder is free: it is not refused as in use
        train_vqvae(out=runs[1], resume="auto", steps=1)
