"core/stream: the same rows with any number of processes and networks, a bounded queue, and what survives a crash."
import json
import os
import threading
import time

import numpy as np
import pandas as pd
import pytest

from mammo_nb.core.parallel import collect
from mammo_nb.core.processes import LOST
from mammo_nb.core.stream import Watch, flow, grouped


def decode(item, mode):
    "Earlier items take longer, so that files finish in another order than they start."
    if item.get("bad"):
        raise ValueError(f"{item['file']} is bad")
    if item.get("deadly"):
        os._exit(1)
    picture = np.random.default_rng(item["x"]).random((16, 16), np.float32)
    for _ in range(20 * (20 - item["x"])):
        picture = np.sort(picture, 0)
    if item.get("markers"):
        open(os.path.join(item["markers"], item["file"]), "w").close()
    return {"x": item["x"], "mode": mode}, picture


def network(mode, pictures):
    return [{"sum": float(p.sum()), "company": len(pictures)} for p in pictures]


def things(n, **more):
    return [{"file": f"{k:02}", "x": k, **more} for k in range(n)]


def through(path, items, networks=1, workers=0, limit=12, network=network, watch=None, size=4):
    watch = watch or Watch(max(1, workers), networks)

    def rows_of(hashed, done):
        groups = grouped(hashed, {h: i for h, i in hashed.items() if h not in done}, size)
        return flow(groups, decode, [network] * networks, watch, workers=workers, limit=limit)

    return collect(rows_of, items, table=path), watch


def test_the_table_depends_on_no_number_of_processes_and_networks(tmp_path):
    items = things(18)
    items[5]["bad"] = True
    found, watch = through(tmp_path / "turn.csv", items)
    # the batches are fixed before anything runs
    assert found["company"].fillna(0).tolist() == [4] * 4 + [3, 0, 3, 3] + [4] * 8 + [2, 2]
    assert found["error"][5] == "ValueError: 05 is bad"
    assert len(watch.decodes) == 18 and sum(b[2] for b in watch.batches) == 17
    variants = {"two": dict(workers=2), "networks": dict(workers=2, networks=2), "short": dict(workers=2, limit=4)}
    for name, how in variants.items():
        _, watch = through(tmp_path / f"{name}.csv", items, **how)
        assert (tmp_path / f"{name}.csv").read_bytes() == (tmp_path / "turn.csv").read_bytes(), name
        assert watch.most_held <= how.get("limit", 12), name


def test_the_queue_fills_to_its_limit_and_no_further(tmp_path):
    "While the first batch is slow, the processes decode until six files are held, and stop."
    markers, seen = tmp_path / "markers", []
    markers.mkdir()
    def slow(mode, pictures):
        end = time.monotonic() + 60
        while not seen and len(os.listdir(markers)) < 6 and time.monotonic() < end:
            pass
        seen.append(len(os.listdir(markers)))
        return network(mode, pictures)
    through(tmp_path / "t.csv", things(16, markers=str(markers)), workers=2, limit=6, network=slow, size=2)
    # each finished batch makes room for two more files
    assert seen[0] == 6 and all(n <= 6 + 2 * k for k, n in enumerate(seen)) and seen[-1] == 16


def test_a_process_that_dies_loses_its_own_file_only(tmp_path):
    items = things(12)
    items[6]["deadly"] = True
    found, _ = through(tmp_path / "t.csv", items, workers=2)
    assert found.loc[found["error"] != "", ["file", "error"]].values.tolist() == [["06", LOST]]
    without, _ = through(tmp_path / "without.csv", things(12))
    pd.testing.assert_series_equal(found["sum"].drop(6), without["sum"].drop(6))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_network_that_fails_ends_the_run_and_the_next_one_goes_on(tmp_path, workers):
    calls = []
    def breaks(mode, pictures):
        calls.append(len(pictures))
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return network(mode, pictures)
    with pytest.raises(RuntimeError, match="out of memory"):
        through(tmp_path / "t.csv", things(16), workers=workers, network=breaks)
    kept = [json.loads(line)["row"]["x"] for line in (tmp_path / "t.csv.journal").read_text().splitlines()[1:]
            if '"item"' in line]
    # two complete batches
    batches = sorted({x // 4 for x in kept})
    assert sorted(kept) == [x for k in batches for x in range(4 * k, 4 * k + 4)] and len(kept) == 8
    through(tmp_path / "t.csv", things(16), workers=workers, network=breaks)
    assert calls == [4] * 5
    through(tmp_path / "whole.csv", things(16))
    assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_group_without_a_mode_is_not_started_and_the_journal_is_kept(tmp_path):
    class Choosy(Watch):
        def choose(self, busy, left):
            calls.append((busy, left))
            return None if left <= 8 else "all"
    calls = []
    found, _ = through(tmp_path / "t.csv", things(16), watch=Choosy(), limit=4)
    assert calls == [(0, 16), (0, 12), (0, 8)]
    assert (found["error"] == "").tolist() == [True] * 8 + [False] * 8 and found["error"][8].startswith("NotReached")
    found, watch = through(tmp_path / "t.csv", things(16))
    assert (found["error"] == "").all() and len(watch.decodes) == 8


def stuck(item, mode):
    if item["x"] == 9:
        threading.Event().wait()
    return {"x": item["x"]}, np.zeros((2, 2))


def test_a_stream_ends_in_time_although_a_decoder_never_returns():
    "The rows that are finished in time are given, and the process that hangs is killed."
    rows, items = [], dict(enumerate(things(12)))
    class Clock:   # the time ends as soon as everything that can be finished is finished
        def __call__(self):
            return 1e9 if len(rows) == 8 else 0.0
        def __reduce__(self):
            return getattr, (time, "monotonic")   # the clock of the processes

    for name, row in flow(grouped(items, items, 4), stuck, [network], Watch(2, 1, Clock()), workers=2, limit=12,
                          until=1e6):
        rows.append(name)
    assert sorted(rows) == list(range(8))


def test_a_limit_below_a_group_is_refused():
    with pytest.raises(ValueError, match="never fills a group of 4"):
        list(flow(grouped("abcd", dict.fromkeys("abcd"), 4), decode, [network], Watch(), workers=0, limit=3))
