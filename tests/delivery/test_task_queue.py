"""The queue of a cluster's processes: it survives the death of any of them."""

import multiprocessing
import signal

import pytest
from django_q import cluster

from delivery.task_queue import LastingQueue, ProcessLock

PROCESSES = multiprocessing.get_context("fork")


def hand_on(tasks, results, number):
    for task in iter(tasks.get, "STOP"):
        results.put((number, task))


def hold(lock, held, may_end):
    with lock:
        held.set()
        may_end.wait()


@pytest.fixture
def start():
    started = []

    def one(target, *arguments):
        process = PROCESSES.Process(target=target, args=arguments, daemon=True)
        process.start()
        started.append(process)
        return process

    yield one
    for process in started:
        process.kill()
        process.join()


def test_clusters_use_it():
    assert cluster.Queue is LastingQueue


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_task_reaches_another_worker_when_two_were_killed_while_they_waited(start, first):
    """One of them waits for a task and the others for their turn, whoever that is."""
    tasks, results = LastingQueue(10), LastingQueue()
    workers = [start(hand_on, tasks, results, number) for number in range(3)]
    tasks.put("one that is done")
    assert results.get(timeout=30)[1] == "one that is done"
    for number in (first, (first + 1) % 3):
        workers[number].kill()
        workers[number].join()
        assert workers[number].exitcode == -signal.SIGKILL
    tasks.put("one for whoever is left")
    assert results.get(timeout=30) == ((first + 2) % 3, "one for whoever is left")


def test_a_lock_is_free_when_its_holder_was_killed(start):
    lock, held, may_end = ProcessLock(), PROCESSES.Event(), PROCESSES.Event()
    holder = start(hold, lock, held, may_end)
    assert held.wait(30)
    assert not lock.acquire(block=False)
    assert not lock.acquire(timeout=0.05)
    holder.kill()
    holder.join()
    assert lock.acquire(timeout=30)
    lock.release()


def test_a_lock_is_given_back_at_the_end_of_its_block(start):
    lock, held, may_end = ProcessLock(), PROCESSES.Event(), PROCESSES.Event()
    holder = start(hold, lock, held, may_end)
    assert held.wait(30)
    may_end.set()
    assert lock.acquire(timeout=30)
    holder.join(30)
    assert holder.exitcode == 0
