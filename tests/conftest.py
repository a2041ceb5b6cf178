"""What every test can lean on: tiny models made in memory, a private home, the real folder."""

import contextlib
import gc
import os
import shutil
from contextlib import closing
from pathlib import Path

from jobs.job_queue import JobStore
from tests.dashboard import answering

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")  # never a person's
os.environ.setdefault("STUDIO_SPARE", "0")  # most of the homes of tests never train
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process compiles the product again
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run here, in Python

import psutil
import pytest
from hypothesis import HealthCheck, settings

from studio.home import open_home

gc.disable()  # until everything is imported; what is there by then is never looked through again

# The same examples in every run, however slow the machine; a long hunt looks for new ones.
settings.register_profile(
    "steady", derandomize="FUZZ_EXAMPLES" not in os.environ, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("steady")

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"


@pytest.fixture
def home(tmp_path):
    """A private home folder."""
    return open_home(tmp_path / "home")


@pytest.fixture
def store(home):
    """The queue of a private home."""
    with closing(JobStore(home)) as opened:
        yield opened


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
    """What forks the processes of a studio instead of starting them, where this system can."""
    from tests.jobs.nursery import AVAILABLE, Nursery

    if not AVAILABLE:
        yield None
        return
    opened = Nursery.start("real", str(tmp_path_factory.getbasetemp()))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def forked(nursery):
    """Fork the supervisors, runners and chat hosts that the tests of a module start."""
    with nursery.replaces_spawn() if nursery else contextlib.nullcontext():
        yield


@pytest.fixture
def dashboard():
    """A Ray dashboard that answers what the test wants."""
    with answering() as here:
        yield here


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with the starter as `org/small`; the library in this process uses it."""
    from studio.starter import MODEL_DIR
    from tests import hub as hubs

    with hubs.running() as running:
        running.repos[hubs.NAME] = hubs.repo_of(MODEL_DIR)
        hubs.use(monkeypatch, running, tmp_path / "cache")
        yield running


@pytest.fixture(scope="session")
def real():
    """Real models and data that nobody here made; kept beside the repository."""
    if not (REAL / "models").is_dir():
        pytest.skip(f"the folder of real models and data is not here: {REAL}")
    return REAL


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep a file, or all browser tests, with one worker; skip what takes minutes, unless asked."""
    for item in items:
        if item.get_closest_marker("long") and not os.environ.get("STUDIO_LONG"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: STUDIO_LONG=1 runs it"))
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            alone = item.path.parent.name == "browser"
            group = "browser" if alone else str(item.path)
            item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End processes that tests left running in their homes, and fail the session for them.

    A chat host outlives its page until it is idle, so it is only ended.
    """
    gc.unfreeze()  # else some libraries report leaks at the end
    if hasattr(session.config, "workerinput"):
        return
    base = str(session.config._tmp_path_factory.getbasetemp())
    left = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if f"{base}{os.sep}" in command:
            left += [command] * ("jobs.chat_host" not in command)
            with contextlib.suppress(psutil.Error):
                process.kill()
    if left:
        print("\nstill running after the tests:", *left, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config: pytest.Config) -> None:
    """The long browser stories start first, since they are one group."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False
