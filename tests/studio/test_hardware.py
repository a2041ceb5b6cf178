from types import SimpleNamespace

from studio import hardware


def test_the_cpu_is_always_a_device():
    cpu = hardware.devices()[-1]
    assert cpu.name == "cpu"
    assert 0 < cpu.free_bytes <= cpu.total_bytes


def test_threads_follow_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert hardware.threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert hardware.threads() == hardware.physical_cores() >= 1


def test_how_busy_the_processor_is_is_told_once_it_is_measured(monkeypatch):
    spent, clock = [(100.0, 1000.0), (106.0, 1012.0), (500.0, 2000.0)], [0.0, 0.1, 3.0, 900.0]
    monkeypatch.setattr(hardware, "_processor_seconds", lambda: spent.pop(0))
    monkeypatch.setattr(hardware, "time", SimpleNamespace(monotonic=lambda: clock.pop(0)))
    busy = hardware._Utilization()
    assert busy.since_last_call() is None, "nothing is measured at the first question"
    assert busy.since_last_call() is None, "a tenth of a second tells nothing"
    assert busy.since_last_call() == 0.5  # 6 of 12 seconds
    assert busy.since_last_call() is None, "what a quarter of an hour was like is not how it is now"
