"""Which tests reach which function, and what they say of a mutant; each in a forked process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType, FrameType
from typing import TextIO

import pytest
from mutants import MODULE, Mutant, mutated

# They test what stands on the core, or start processes of their own: they see little of a fault, and late.
LEFT_OUT = re.compile(
    r"test_(allocator|cli|compar\w*|docs|export\w*|gpu|house|kernels|launching|mutate|processes|python|recipes|report)\.py"
)
OPTIONS = ("-x", "-n", "0", "-p", "no:cacheprovider", "-p", "no:unraisableexception", "--no-header", "--tb=no")
SHARED = re.compile(r'scope="(module|session)"|@(functools\.)?(lru_)?cache\b')
MOST_COMMON = 5  # letters: shorter names of functions are words that any file has, and so are
COMMON = {MODULE, "__init__", "__post_init__", "forward", "weights", "update"}
SLOWEST_S = 8.0  # CPU seconds, traced: slower tests do not judge
FILE_S = 90.0  # CPU seconds, traced: the tests of a file that come later do not judge
SLOWER = 5.0  # than without a fault: then it is taken to hang
GRACE_S = 20.0
WAITING = 10.0  # times the CPU seconds it may take: then it is taken to wait for ever
MOST_BYTES = 8 * 2**30  # of memory; a fault must not take the machine's
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Test:
    """One green test. seconds: of CPU; reached: the functions that it runs, `path function`."""

    name: str
    seconds: float
    reached: frozenset[str]

    @property
    def file(self) -> str:
        return self.name.split("::")[0]


class Watcher:
    """A plugin of pytest: writes for each green test its CPU seconds and the functions below `root` that it enters."""

    def __init__(self, root: Path, written: TextIO) -> None:
        self.root = f"{root}{os.sep}"
        self.written = written
        self.red: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterable[None]:
        seen: set[CodeType] = set()

        def trace(frame: FrameType, event: str, arg: object) -> None:
            seen.add(frame.f_code)

        begin = time.process_time()
        signal.signal(signal.SIGPROF, _too_slow)
        signal.setitimer(signal.ITIMER_PROF, SLOWEST_S)
        threading.settrace(trace)
        sys.settrace(trace)
        try:
            return (yield)
        finally:
            seconds = round(time.process_time() - begin, 2)
            signal.setitimer(signal.ITIMER_PROF, 0)
            sys.settrace(None)
            threading.settrace(None)  # pyright: ignore[reportArgumentType]
            if item.nodeid not in self.red:
                line = {"name": item.nodeid, "seconds": seconds, "reached": sorted(self._names(seen))}
                self.written.write(json.dumps(line) + "\n")
                self.written.flush()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.red.add(report.nodeid)

    def _names(self, codes: Iterable[CodeType]) -> set[str]:
        inside = (code for code in codes if code.co_filename.startswith(self.root))
        names = {f"{c.co_filename.removeprefix(self.root)} {c.co_qualname.split('.<locals>')[0]}" for c in inside}
        return {name for name in names if not name.startswith("tests") and not name.endswith(">")}


def _too_slow(*_: object) -> None:
    raise TimeoutError("too slow to judge")


class Tests:
    """The tests of a copy of the tree. A file of tests is run once without faults when it is first asked for."""

    def __init__(self, copy: Path, cache: Path) -> None:
        self.copy = copy
        self.cache = cache
        files = sorted((copy / "tests").rglob("test_*.py"))
        self.texts = {str(path.relative_to(copy)): path.read_text() for path in files if not LEFT_OUT.match(path.name)}
        self._known: dict[str, list[Test]] = {}

    def that_enter(self, mutant: Mutant, seconds: float, most_files: int | None) -> Iterator[list[Test]]:
        """Tests that may kill it, file by file, the nearest first, the fastest of a file first, up to `seconds` in all:
        those that enter its function, or for a fault in what runs when the file is imported, anything in it. After them
        come, where tests of a file share what they make, the others of that file. What no test enters may run at an
        import, as what registers things does.
        """
        files = 0
        nearest = self._nearest(mutant)
        if not any(self._of_file(file, mutant) for file in nearest):
            mutant = replace(mutant, function=MODULE)
        for file in nearest:
            tests = self._of_file(file, mutant)
            while tests and sum(test.seconds for test in tests) > seconds:
                tests.pop()
            if tests:
                yield tests
                seconds -= sum(test.seconds for test in tests)
                files += 1
            if files == most_files or seconds <= 0:
                break

    def _nearest(self, mutant: Mutant) -> list[str]:
        """All files: first those that import the module, have its name or its folder's, or speak of its function."""
        module = mutant.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        folder, stem = Path(mutant.path).parent.name, module.split(".")[-1]
        names = [name for name in mutant.function.split(".") if len(name) > MOST_COMMON and name not in COMMON]
        words = [rf"\b{re.escape(word)}\b" for word in (module, *names)]
        near = {
            file: 4 * (stem in file) + 2 * (folder in file) + sum(bool(re.search(word, text)) for word in words)
            for file, text in self.texts.items()
        }
        return sorted(near, key=lambda file: -near[file])

    def _of_file(self, file: str, mutant: Mutant) -> list[Test]:
        is_whole = mutant.function == MODULE
        entered = f"{mutant.path} " if is_whole else f"{mutant.path} {mutant.function}"
        first = [
            test
            for test in self._of(file)
            if any(name.startswith(entered) if is_whole else name == entered for name in test.reached)
        ]
        shares = first and SHARED.search(self.texts[file])
        others = [test for test in self._of(file) if test not in first] if shares else []
        return sorted(first, key=lambda test: test.seconds) + others

    def _of(self, file: str) -> list[Test]:
        if file not in self._known:
            key = f"{SLOWEST_S} {FILE_S} {self.texts[file]}"
            digest = hashlib.sha256(key.encode()).hexdigest()[:16]
            kept = self.cache / f"{Path(file).stem}-{digest}.jsonl"
            if not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                print(f"without a fault: {file}", flush=True)
                partial = kept.with_suffix(".partial")
                in_fork(lambda: _watch(self.copy, file, partial), FILE_S)
                partial.replace(kept)
            read = map(json.loads, kept.read_text().splitlines())
            self._known[file] = [Test(test["name"], test["seconds"], frozenset(test["reached"])) for test in read]
        return self._known[file]


def judge(copy: Path, mutant: Mutant, by_file: Iterable[Sequence[Test]]) -> str:
    """killed, timed out or survived; the copy is as before afterwards, and whenever the next tests are asked for."""
    file = copy / mutant.path
    source = file.read_text()
    for tests in by_file:
        names = [test.name for test in tests]
        file.write_text(mutated(source, mutant.place))
        try:
            code = in_fork(lambda names=names: _run(names), GRACE_S + SLOWER * sum(test.seconds for test in tests))
        finally:
            file.write_text(source)
        if code != 0:
            return "timed out" if code in (None, -signal.SIGXCPU) else "killed"
    return "survived"


def in_fork(call: Callable[[], object], cpu_s: float) -> int | None:
    """The exit code of a forked process that makes this call; None where it was ended because it took far too long."""
    process = FORK.Process(target=_alone, args=(call, math.ceil(cpu_s)))
    process.start()
    try:
        process.join(WAITING * cpu_s)
        is_late = process.is_alive()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # with all that it started
        process.join()
    return None if is_late else process.exitcode


def _alone(call: Callable[[], object], cpu_s: int) -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    call()


def _run(names: Sequence[str]) -> None:
    """Up to the first red test. Compiled faults are not kept."""
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os._exit(int(pytest.main([*OPTIONS, *names])))


def _watch(copy: Path, file: str, written: Path) -> None:
    with written.open("w") as stream:
        pytest.main([*OPTIONS[1:], "-k", "not compile", file], plugins=[Watcher(copy, stream)])
    os._exit(0)
