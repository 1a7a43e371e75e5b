"""The queue between requests and workers: turns, models, errands."""

import asyncio
import threading
import time
from itertools import chain
from unittest.mock import Mock

import numpy as np
import pytest

from app.inference.lanes import Batch, Item, Lane, Lanes
from tests.service.harness import FakeSession, picture


def item(value: int) -> Item:
    return Item(picture(value), Mock(spec=asyncio.Future), time.monotonic())


def fill(lanes: Lanes, session: FakeSession, values: range) -> Lane:
    lane = Lane((session,))
    for value in values:
        lanes.put(lane, item(value))
    return lane


def values_of(batch: object) -> list[int]:
    assert isinstance(batch, Batch)
    return [int(np.ravel(taken.image)[0]) for taken in batch.items]


def test_requests_take_turns() -> None:
    lanes, session = Lanes(1), FakeSession(max_batch=4)
    fill(lanes, session, range(10))
    fill(lanes, session, range(100, 101))
    fill(lanes, session, range(200, 203))
    assert values_of(lanes.take(0)) == [0, 100, 200, 1]
    assert values_of(lanes.take(0)) == [201, 2, 202, 3]
    assert values_of(lanes.take(0)) == [4, 5, 6, 7]


def test_models_take_turns_and_never_share_a_batch() -> None:
    lanes, one, other = Lanes(1), FakeSession(max_batch=2), FakeSession(max_batch=2)
    fill(lanes, one, range(5))
    fill(lanes, other, range(100, 102))
    taken = [lanes.take(0) for _ in range(4)]
    assert [values_of(batch) for batch in taken] == [[0, 1], [100, 101], [2, 3], [4]]
    assert [isinstance(batch, Batch) and batch.session for batch in taken] == [one, other, one, one]


def test_a_discarded_lane_is_gone() -> None:
    lanes, session = Lanes(1), FakeSession(max_batch=4)
    gone = fill(lanes, session, range(3))
    fill(lanes, session, range(100, 101))
    lanes.discard(gone)
    lanes.discard(gone)
    assert values_of(lanes.take(0)) == [100]


def test_a_dropped_picture_is_passed_over() -> None:
    lanes, session = Lanes(1), FakeSession(max_batch=4)
    lane = fill(lanes, session, range(3))
    lane.items[1].dropped = True
    assert values_of(lanes.take(0)) == [0, 2]


def test_an_errand_goes_first_and_to_its_own_worker() -> None:
    lanes, session = Lanes(2), FakeSession()
    lane = Lane((session, session))
    lanes.put(lane, item(1))
    done = lanes.errand(1, lambda: None)
    assert values_of(lanes.take(0)) == [1]
    call = lanes.take(1)
    assert isinstance(call, tuple)
    assert call[1] is done


def test_closing_sends_workers_home_and_cancels_errands() -> None:
    lanes = Lanes(1)
    taken: list[object] = [0]
    thread = threading.Thread(target=lambda: taken.append(lanes.take(0)))
    thread.start()
    lanes.close()
    thread.join(10)
    assert taken == [0, None]
    assert lanes.errand(0, lambda: None).cancelled()


@pytest.mark.parametrize("workers", [1, 3])
def test_nothing_is_lost_or_taken_twice_by_many_threads(workers: int) -> None:
    lanes = Lanes(workers)
    sessions = tuple(FakeSession(max_batch=3) for _ in range(workers))
    taken: list[list[Item]] = [[] for _ in range(workers)]

    def work(index: int) -> None:
        while isinstance(batch := lanes.take(index), Batch):
            assert batch.session is sessions[index]
            taken[index] += batch.items

    threads = [threading.Thread(target=work, args=(index,)) for index in range(workers)]
    for thread in threads:
        thread.start()
    put = []
    for _ in range(100):
        lane = Lane(sessions)
        for value in range(7):
            put.append(item(value))
            lanes.put(lane, put[-1])
    deadline_s = time.monotonic() + 20
    while sum(len(items) for items in taken) < len(put):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    lanes.close()
    for thread in threads:
        thread.join(10)
    assert {id(one) for items in taken for one in items} == {id(one) for one in put}


def test_a_worker_leaves_idle_ones_their_share() -> None:
    lanes, session = Lanes(3), FakeSession(max_batch=4)
    taken: list[list[int]] = []
    others = [threading.Thread(target=lambda: taken.append(values_of(lanes.take(1)))) for _ in range(2)]
    for other in others:
        other.start()
    while lanes._idle < 2:
        time.sleep(0.001)
    lane = Lane((session,) * 3)
    with lanes._changed:  # nobody wakes up before all are there
        for value in range(6):
            lanes.put(lane, item(value))
        taken.append(values_of(lanes.take(0)))
    for other in others:
        other.join(timeout=60)
    assert sorted(map(len, taken)) == [2, 2, 2]
    assert sorted(chain.from_iterable(taken)) == list(range(6))
