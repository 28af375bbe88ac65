"""Executors lose nothing, repeat nothing and leave nothing behind, whoever dies."""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prunus.candidates.dispatch import WorkerLostError
from prunus.candidates.processes import ProcessExecutor
from prunus.candidates.ray_cluster import RayExecutor
from prunus.candidates.serial import SerialExecutor
from prunus.candidates.task import Executor, Result, Scoring
from prunus.candidates.worker import RemoteTraceback
from prunus.errors import InputError, MissingExtraError
from tests.candidates.fake_scoring import FakeSetup, leave, make, task

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=100_000_000,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> FakeSetup:
    folder = tmp_path_factory.mktemp("notes")
    return FakeSetup(folder, np.linspace(0, 1, 250_000, dtype=np.float32))


def executor_of(kind: str, setup: FakeSetup, workers: int = 2, threads: int = 1) -> Executor:
    if kind == "ray":
        return RayExecutor(make, setup, workers, threads)
    return ProcessExecutor(make, setup, workers, threads)


@pytest.fixture(scope="module", params=["processes", "ray"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return str(request.param)


@pytest.fixture(scope="module")
def executor(kind: str, setup: FakeSetup) -> Iterator[Executor]:
    """Two workers for many tests, each of which has keys of its own."""
    executor = executor_of(kind, setup)
    yield executor
    executor.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def all_gone(pids: list[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(map(alive, pids)):
            return True
        time.sleep(0.05)
    return False


def same(a: Result, b: Result) -> bool:
    arrays = all(
        np.array_equal(x, y) and x.dtype == y.dtype
        for x, y in [(a.kl, b.kl), (a.loss, b.loss), (a.correct, b.correct)]
    )
    return arrays and a.statistics == b.statistics


class TestSerial:
    def test_a_task_begins_when_its_result_is_asked_for(self, setup: FakeSetup) -> None:
        executor = SerialExecutor(make(setup))
        results = executor.run([task("lazy 1"), task("lazy 2")])
        assert next(results).key == "lazy 1"
        assert setup.noted("scored lazy 2") == []
        assert next(results).key == "lazy 2"


@pytest.mark.slow
class TestBothKinds:
    def test_results_are_the_serial_ones_and_the_setup_is_read_once_a_worker(
        self, kind: str, executor: Executor, setup: FakeSetup
    ) -> None:
        keys = [f"{kind} {length * 'x'}" for length in range(4)]
        tasks = [task(key, start, start + 50) for key in keys for start in range(0, 150, 50)]
        results = list(executor.run(tasks))
        workers = {pid for key in keys for pid in setup.noted(f"scored {key}")}
        assert 1 <= len(workers) <= 2
        assert os.getpid() not in workers
        for event in ("unpickled", "made"):
            assert sorted(p for p in setup.noted(event) if p in workers) == sorted(workers)
        found = {(r.key, r.start): r for r in results}
        expected = list(SerialExecutor(make(setup)).run(tasks))
        assert len(results) == len(found) == len(expected) == 12
        assert all(same(found[r.key, r.start], r) for r in expected)
        assert {r.seconds for r in results} == {1.0}  # threads, says the fake

    def test_a_worker_killed_in_mid_task_loses_nothing(
        self, kind: str, executor: Executor, setup: FakeSetup
    ) -> None:
        keys = [f"waits {kind}", *(f"{kind} beside {n}" for n in range(5))]
        results = executor.run([task(key) for key in keys])
        found = [next(results).key for _ in range(5)]
        (pid,) = setup.wait_for(f"scored {keys[0]}")
        os.kill(pid, signal.SIGKILL)
        found += [r.key for r in results]
        assert sorted(found) == sorted(keys)
        assert len(set(setup.noted(f"scored {keys[0]}"))) == 2
        assert all(len(setup.noted(f"scored {key}")) == 1 for key in keys[1:])

    def test_a_worker_killed_while_idle_is_replaced(
        self, kind: str, executor: Executor, setup: FakeSetup
    ) -> None:
        assert len(list(executor.run([task(f"{kind} before")]))) == 1
        (pid,) = setup.noted(f"scored {kind} before")
        os.kill(pid, signal.SIGKILL)
        assert all_gone([pid], 5)
        tasks = [task(f"{kind} after {n}") for n in range(3)]
        assert sorted(r.key for r in executor.run(tasks)) == [t.key for t in tasks]

    def test_errors_of_the_scorer_arrive_as_they_are(self, executor: Executor) -> None:
        with pytest.raises(InputError, match=r"^argument 'x' is 1: give 2$"):
            list(executor.run([task("refuses")]))
        with pytest.raises(ZeroDivisionError, match="of the scorer") as caught:
            list(executor.run([task("fails")]))
        assert isinstance(caught.value.__cause__, RemoteTraceback)
        assert "fake_scoring.py" in str(caught.value.__cause__)
        with pytest.raises(RuntimeError, match="OddError: 1 and 2"):
            list(executor.run([task("odd")]))
        assert [r.key for r in executor.run([task("good")])] == ["good"]

    def test_a_task_that_kills_is_given_up_after_three_workers(
        self, kind: str, executor: Executor, setup: FakeSetup
    ) -> None:
        cause = r"killed by SIGKILL \(most likely out of memory\)" if kind == "processes" else "Ray"
        message = f"^candidate 'dies {kind}', images 0 to 4, .* died 3 times, .*{cause}.*; use"
        with pytest.raises(WorkerLostError, match=message):
            list(executor.run([task(f"dies {kind}")]))
        assert len(set(setup.noted(f"scored dies {kind}"))) == 3

    def test_stopping_early_leaves_the_executor_fit_and_close_ends_it(
        self, kind: str, setup: FakeSetup
    ) -> None:
        executor = executor_of(kind, setup, workers=1, threads=2)
        early = executor.run([task(f"{kind} early {n}") for n in range(40)])
        assert next(early).seconds == 2.0  # threads, says the fake
        again = executor.run([task(f"{kind} again"), task(f"waits {kind} to the end")])
        assert next(again).key == f"{kind} again"
        assert sum(bool(setup.noted(f"scored {kind} early {n}")) for n in range(40)) == 2
        pids = setup.wait_for(f"scored waits {kind} to the end")
        executor.close()
        executor.close()
        assert all_gone(pids, 5)
        with pytest.raises(RuntimeError, match="stopped"):
            next(again)
        with pytest.raises(RuntimeError, match="closed"):
            executor.run([task("never")])

    def test_errors_while_the_scorer_is_made_arrive(self, kind: str, tmp_path: Path) -> None:
        setup = FakeSetup(tmp_path, np.zeros(4, np.float32), failure="argument 'y' is bad")
        executor = executor_of(kind, setup, workers=1)
        with pytest.raises(InputError, match=r"^argument 'y' is bad$"):
            list(executor.run([task("never"), task("nor this")]))
        executor.close()
        assert len(setup.noted("made")) == 1


def test_a_worker_starts_without_the_libraries_that_it_never_calls() -> None:
    """They would take longer to import than all of Prunus."""
    code = """if True:
        import sys, prunus.candidates.worker
        print({"scipy.stats", "scipy.special", "sklearn", "pandas", "plotly"} & set(sys.modules))
    """
    command = [sys.executable, "-c", code]
    paths = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}"}
    done = subprocess.run(command, env=paths, check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("kind", [ProcessExecutor, RayExecutor])
@pytest.mark.parametrize("argument", ["workers", "threads"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_numbers_below_one_are_refused(
    kind: Any, argument: str, value: Any, setup: FakeSetup
) -> None:
    numbers = {"workers": 1, "threads": 1, argument: value}
    with pytest.raises(InputError, match=f"argument '{argument}' is {value}: give a whole number"):
        kind(make, setup, **numbers)


class TestProcesses:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        return tmp_path

    def test_what_does_not_pickle_is_refused(self, setup: FakeSetup) -> None:
        def local(setup: FakeSetup) -> Scoring:
            return make(setup)

        with pytest.raises(InputError, match="argument 'make' or 'setup' cannot be sent"):
            ProcessExecutor(local, setup, 1, 1)

    def test_a_full_disk_is_told(
        self, setup: FakeSetup, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(path: Path, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match="does not take .* No space left .* set TMPDIR"):
            ProcessExecutor(make, setup, 1, 1)
        assert list(folder.iterdir()) == []

    def test_a_worker_that_leaves_while_it_starts_is_told_with_a_remedy(
        self, setup: FakeSetup, folder: Path
    ) -> None:
        executor = ProcessExecutor(leave, setup, 1, 1)
        message = "while it was starting: with exit code 3; what it printed .* fewer workers"
        with pytest.raises(WorkerLostError, match=message):
            next(iter(executor.run([task("1")])))
        executor.close()

    def test_a_setup_that_somebody_removed_is_told(self, setup: FakeSetup, folder: Path) -> None:
        executor = ProcessExecutor(make, setup, 1, 1)
        (inside,) = folder.iterdir()
        shutil.rmtree(inside)
        with pytest.raises(InputError, match="was emptied before a worker .* set TMPDIR"):
            next(iter(executor.run([task("1")])))
        executor.close()

    def test_close_deletes_the_setup(self, setup: FakeSetup, folder: Path) -> None:
        executor = ProcessExecutor(make, setup, 1, 1)
        (inside,) = folder.iterdir()
        assert inside.stat().st_mode & 0o777 == 0o700
        executor.close()
        assert list(folder.iterdir()) == []


class TestRay:
    def test_without_ray_the_extra_is_named(
        self, setup: FakeSetup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        message = (
            r"^ray is not installed: pip install 'prunus\[ray\]', or '\.\[ray\]' in its folder$"
        )
        with pytest.raises(MissingExtraError, match=message):
            RayExecutor(make, setup, 1, 1)

    @pytest.mark.parametrize("starts", [True, False])
    def test_ray_logs_after_close_as_it_did_before(
        self,
        setup: FakeSetup,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        starts: bool,
    ) -> None:
        caplog.set_level(logging.INFO, logger="ray")
        levels = []

        def init(**_: Any) -> None:
            levels.append(logging.getLogger("ray").level)
            if not starts:
                raise RuntimeError("no room")

        fake = ModuleType("ray")
        machine = {"Alive": True, "Resources": {"CPU": 1.0}}
        fake.__dict__.update(
            is_initialized=lambda: False,
            init=init,
            shutdown=lambda: None,
            nodes=lambda: [machine],
            put=lambda held: held,
            remote=lambda **_: lambda kind: kind,
            exceptions=SimpleNamespace(RayError=RuntimeError),
        )
        monkeypatch.setitem(sys.modules, "ray", fake)
        if starts:
            RayExecutor(make, setup, 1, 1).close()
        else:
            with pytest.raises(InputError, match=r"cannot start on this machine .no room."):
                RayExecutor(make, setup, 1, 1)
        assert levels == [logging.ERROR]
        assert logging.getLogger("ray").level == logging.INFO

    @pytest.mark.parametrize(
        ("address", "message"),
        [
            ("here", "is 'here': give 'auto' or HOST:PORT"),
            ("127.0.0.1:1", "is '127.0.0.1:1', where nothing answers .* leave it out to start Ray"),
            ("auto", "is 'auto', where no Ray cluster can be joined .no instance.: run `ray start"),
        ],
    )
    def test_an_address_without_a_cluster_is_told(
        self, setup: FakeSetup, monkeypatch: pytest.MonkeyPatch, address: str, message: str
    ) -> None:
        ray = pytest.importorskip("ray")

        def absent(**arguments: Any) -> None:
            raise ConnectionError("no\ninstance")

        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "shutdown", lambda: None)  # of the cluster of other tests
        monkeypatch.setattr(ray, "init", absent)
        found = "ray._private.services.canonicalize_bootstrap_address_or_die"
        monkeypatch.setattr(found, lambda _: "127.0.0.1:1")  # one that has crashed, perhaps
        with pytest.raises(InputError, match=f"argument 'address' {message}"):
            RayExecutor(make, setup, 1, 1, address)

    def test_ray_does_not_keep_the_signal_that_ends_a_run(
        self, setup: FakeSetup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ray = pytest.importorskip("ray")
        before = signal.getsignal(signal.SIGTERM)

        def takes_it(**_: object) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise RuntimeError("no further in this test")

        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "shutdown", lambda: None)  # of the cluster of other tests
        monkeypatch.setattr(ray, "init", takes_it)
        try:
            with pytest.raises(InputError, match="no further"):
                RayExecutor(make, setup, 1, 1)
            assert signal.getsignal(signal.SIGTERM) == before
        finally:
            signal.signal(signal.SIGTERM, before)

    @pytest.mark.slow
    def test_more_threads_than_a_machine_has_are_refused(
        self, ray_cluster: Any, setup: FakeSetup
    ) -> None:
        with pytest.raises(InputError, match="'threads' is 5, .* has 4 processors"):
            RayExecutor(make, setup, 1, 5)
        assert ray_cluster.is_initialized()

    @pytest.mark.slow
    def test_a_joined_cluster_is_used_and_left_as_it_is(
        self, ray_cluster: Any, setup: FakeSetup
    ) -> None:
        RayExecutor(make, setup, 1, 1, address="auto").close()
        assert ray_cluster.is_initialized()
        with pytest.raises(InputError, match="'192.0.2.1:6379', but this process has joined"):
            RayExecutor(make, setup, 1, 1, address="192.0.2.1:6379")


HEAD = """
import sys
from pathlib import Path

import numpy as np

from prunus.candidates.processes import ProcessExecutor
from tests.candidates import fake_scoring
from tests.candidates.fake_scoring import FakeSetup, task

setup = FakeSetup(Path(sys.argv[1]), np.zeros(4, np.float32))
"""


def started(script: str, folder: Path, **variables: str) -> "subprocess.Popen[str]":
    """A user's main script, in a process group of its own; its temporary files go to ``tmp``."""
    (folder / "tmp").mkdir()
    path = folder / "script.py"
    path.write_text(HEAD + textwrap.dedent(script))
    paths = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "TMPDIR": str(folder / "tmp")}
    return subprocess.Popen(
        [sys.executable, str(path), str(folder)],
        env={**os.environ, **paths, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
class TestScripts:
    @pytest.fixture
    def setup(self, tmp_path: Path) -> FakeSetup:
        return FakeSetup(tmp_path, np.zeros(4, np.float32))

    def test_workers_of_a_killed_parent_end_in_mid_task(
        self, tmp_path: Path, setup: FakeSetup
    ) -> None:
        # Nor does the script need a guard, since nothing that it defines is sent.
        script = """
            executor = ProcessExecutor(fake_scoring.make, setup, 2, 1)
            list(executor.run([task("waits 1"), task("waits 2")]))
        """
        with started(script, tmp_path) as process:
            pids = setup.wait_for("scored waits 1") + setup.wait_for("scored waits 2")
            assert len(set(pids)) == 2 and all(map(alive, pids))
            process.kill()
        gone = all_gone(pids, 4)  # two seconds, on a machine that may be busy
        for pid in () if gone else pids:
            os.kill(pid, signal.SIGKILL)
        assert gone
        assert list((tmp_path / "tmp").iterdir()) == []

    def test_ctrl_c_ends_all_without_a_word_of_the_workers(
        self, tmp_path: Path, setup: FakeSetup
    ) -> None:
        # With a guard, the main script may define what the workers use.
        script = """
            def own(setup):
                return fake_scoring.make(setup)

            if __name__ == "__main__":
                executor = ProcessExecutor(own, setup, 2, 1)
                try:
                    list(executor.run([task("waits 1"), task("waits 2")]))
                except KeyboardInterrupt:
                    executor.close()
                    print("interrupted")
        """
        with started(script, tmp_path) as process:
            pids = setup.wait_for("scored waits 1") + setup.wait_for("scored waits 2")
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "interrupted\n", "")
        assert not any(map(alive, pids))
        assert list((tmp_path / "tmp").iterdir()) == []

    def test_a_main_script_without_the_guard_it_needs_is_told(
        self, tmp_path: Path, setup: FakeSetup
    ) -> None:
        script = """
            def own(setup):
                return fake_scoring.make(setup)

            executor = ProcessExecutor(own, setup, 1, 1)
            list(executor.run([task("a")]))
        """
        with started(script, tmp_path) as process:
            _, err = process.communicate(timeout=120)
        last = err.splitlines()[-1]
        assert process.returncode == 1
        assert re.search(r"WorkerLostError: .* exit code 1.* if __name__ == '__main__'", last)
        assert err.count("InputError: a worker, importing the main script") == 1
        assert setup.noted("made") == []
        assert list((tmp_path / "tmp").iterdir()) == []

    def test_ray_starts_with_this_path_and_ends_with_close(
        self, tmp_path: Path, setup: FakeSetup
    ) -> None:
        pytest.importorskip("ray")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "maker.py").write_text(
            "from tests.candidates.fake_scoring import make\n"
            "def own(setup):\n    return make(setup)\n"
        )
        script = """
            sys.path.append(str(Path(sys.argv[1], "elsewhere")))
            import maker
            import ray

            from prunus.candidates.ray_cluster import RayExecutor

            executor = RayExecutor(maker.own, setup, 1, 1)
            results = executor.run([task("dies-once"), task("b")])
            print(sorted(result.key for result in results))
            executor.close()
            print("Ray is", "up" if ray.is_initialized() else "down")
        """
        variables = {
            "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "100000000",
            "TMPDIR": tempfile.gettempdir(),  # names of sockets must be short
        }
        with started(script, tmp_path, **variables) as process:
            out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, "")
        # Ray itself prints a line about the dead worker, too.
        assert {"['b', 'dies-once']", "Ray is down"} <= set(out.splitlines())
