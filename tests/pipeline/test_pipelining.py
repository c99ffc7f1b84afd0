from __future__ import annotations

import threading

import pytest

from hyperfuse.pipeline.pipelining import convey


def test_results_come_in_order():
    results = convey(range(20), load=lambda i: i + 1, work=lambda i: 2 * i, store=lambda i: i - 1)
    assert list(results) == [2 * (i + 1) - 1 for i in range(20)]


def test_the_three_stages_run_at_the_same_time():
    """Each stage of item 2, 1, 0 waits for the two others, so a loop that ran one at a time would never get through."""
    met = threading.Barrier(3, timeout=20)

    def stage(active):
        def run(item):
            if item in active:
                met.wait()
            return item

        return run

    assert list(convey(range(3), load=stage({2}), work=stage({1}), store=stage({0}))) == [0, 1, 2]


@pytest.mark.parametrize(("ahead", "behind"), [(1, 1), (3, 1), (1, 4)])
def test_what_waits_is_bounded(ahead, behind):
    lock, alive, most = threading.Lock(), 0, 0

    def load(item):
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return item

    def store(item):
        nonlocal alive
        with lock:
            alive -= 1
        return item

    assert len(list(convey(range(200), load=load, work=lambda i: i, store=store, ahead=ahead, behind=behind))) == 200
    # One is worked on, `ahead` are loaded or being loaded, `behind + 1` are computed.
    assert most <= ahead + behind + 2


@pytest.mark.parametrize("failing", ["load", "work", "store"])
def test_an_error_ends_it_and_what_was_finished_is_kept(failing):
    stored: list[int] = []

    def stage(name):
        def run(item):
            if name == failing and item == 5:
                raise OSError("broken")
            if name == "store":
                stored.append(item)
            return item

        return run

    with pytest.raises(OSError, match="broken"):
        list(convey(range(100), load=stage("load"), work=stage("work"), store=stage("store")))
    assert stored[:4] == [0, 1, 2, 3]
    assert len(stored) < 10


def test_a_caller_who_stops_leaves_no_thread():
    before = threading.active_count()
    results = convey(range(100), load=lambda i: i, work=lambda i: i, store=lambda i: i)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before
