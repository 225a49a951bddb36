"core/processes, cluster, parallel: order, error rows, and what survives a killed run or a killed worker."
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import local_cluster

from mammo_nb.core import cluster as dask_cluster
from mammo_nb.core.cluster import BackendError, read_scheduler, rows_on_cluster
from mammo_nb.core.parallel import SYNCED, Journal, map_files
from mammo_nb.core.processes import LOST, MOST, TOGETHER, Processes, _work
from mammo_nb.mammo.reading.sides import identify_files

def square(item):
    if item.get("bad"):
        raise ValueError(f"{item['file']} is bad")
    return {"square": item["x"] ** 2, "half": np.float32(item["x"] / 2), "where": Path("a") / item["file"]}

def things(n, **more):
    return [{"file": f"{i:03}.dcm", "x": i, **more} for i in range(n)][::-1]  # not in alphabetical order

def read(table):
    return pd.read_csv(table, keep_default_na=False, dtype={"file": str})

@pytest.mark.parametrize("workers", [1, 3, None])
def test_order_columns_types_and_errors(tmp_path, workers):
    items = things(20)
    items[4]["bad"] = True
    table = tmp_path / "new" / "t.csv"
    frame = map_files(square, items, table=table, workers=workers)
    assert frame.columns.tolist() == ["file", "square", "half", "where", "error"]
    assert frame["file"].tolist() == [i["file"] for i in items]
    assert frame["error"].tolist() == ["ValueError: 015.dcm is bad" if i.get("bad") else "" for i in items]
    good = frame[frame["error"] == ""]
    assert good["square"].tolist() == [i["x"]**2 for i in items if not i.get("bad")]
    assert frame["square"].isna().sum() == 1
    stored = read(table)
    assert stored["file"].tolist() == frame["file"].tolist() and stored["error"].tolist() == frame["error"].tolist()
    # whole numbers stay whole beside the empty field
    assert stored.loc[0].tolist() == ["019.dcm", "361", "9.5", "a/019.dcm", ""]
    assert os.listdir(table.parent) == ["t.csv"]  # neither journal nor temporary file

def test_the_table_is_the_same_for_any_number_of_workers(tmp_path):
    for workers in (1, 2):
        map_files(square, things(30), table=tmp_path / f"{workers}.csv", workers=workers)
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()

def test_no_items_and_repeated_keys(tmp_path):
    assert map_files(square, [], table=tmp_path / "t.csv").columns.tolist() == ["file", "error"]
    assert read(tmp_path / "t.csv").empty
    with pytest.raises(ValueError, match="'file'"):
        map_files(square, things(3) + things(1), table=tmp_path / "t.csv")
    with pytest.raises(KeyError):
        map_files(square, [{"x": 1}], table=tmp_path / "t.csv")

def test_another_key_and_a_row_that_cannot_be_written(tmp_path):
    frame = map_files(lambda item: {"what": object() if item["id"] else 1}, [{"id": 0}, {"id": 1}],
                      table=tmp_path / "t.csv", key="id", workers=1)
    assert frame["id"].tolist() == [0, 1] and frame["error"][0] == ""
    assert frame["error"][1] == "TypeError: a object does not fit into a table"

def interrupted_after(n, calls):
    def fn(item):
        calls.append(item["file"])
        if len(calls) == n:
            raise KeyboardInterrupt
        return square(item)
    return fn

def broken_off(tmp_path, params=None):
    "Interrupt a run over 10 items at the 6th; returns its journal."
    with pytest.raises(KeyboardInterrupt):
        map_files(interrupted_after(6, []), things(10), table=tmp_path / "t.csv", workers=1, params=params)
    assert not (tmp_path / "t.csv").exists()
    return tmp_path / "t.csv.journal"

def stored(journal):
    "Rows of a journal that are in complete lines."
    return [json.loads(line) for line in journal.read_text().split("\n")[1:-1] if '"item"' in line]

def resume(tmp_path, items=None, params=None):
    "Run a second call; returns the files that it works on."
    calls = []
    frame = map_files(interrupted_after(-1, calls), items or things(10), table=tmp_path / "t.csv", workers=1,
                      params=params)
    assert frame["square"].tolist() == [i["x"] ** 2 for i in items or things(10)] and (frame["error"] == "").all()
    assert not (tmp_path / "t.csv.journal").exists()
    return calls

def test_resume_does_only_the_rest(tmp_path):
    broken_off(tmp_path)
    assert resume(tmp_path) == [i["file"] for i in things(10)][5:]
    map_files(square, things(10), table=tmp_path / "whole.csv", workers=1)
    assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()

def test_a_finished_run_starts_anew(tmp_path):
    resume(tmp_path)
    assert len(resume(tmp_path)) == 10

def test_a_finished_run_of_known_code_is_remembered(tmp_path):
    "As a stage calls it, whose functions are in a notebook and whose code has a digest."
    calls = []
    def again(n, code):
        calls.clear()
        return map_files(interrupted_after(-1, calls), things(n), table=tmp_path / "t.csv", workers=1, code=code)
    again(10, {"notebook": "a"})
    assert len(calls) == 10 and (tmp_path / "t.csv.journal").exists()
    assert again(12, {"notebook": "a"})["square"].tolist() == [x ** 2 for x in range(12)][::-1]
    assert calls == ["011.dcm", "010.dcm"]
    again(12, {"notebook": "b"})
    assert len(calls) == 12

def test_rows_with_an_error_are_tried_again(tmp_path):
    items = things(10)
    items[0]["bad"] = True
    with pytest.raises(KeyboardInterrupt):
        map_files(interrupted_after(6, []), items, table=tmp_path / "t.csv", workers=1)
    items[0]["bad"] = False   # the reason is gone
    calls = []
    frame = map_files(interrupted_after(-1, calls), items, table=tmp_path / "t.csv", workers=1)
    assert calls == ["009.dcm", "004.dcm", "003.dcm", "002.dcm", "001.dcm", "000.dcm"] and (frame["error"] == "").all()

def test_other_params_start_anew_and_the_same_resume(tmp_path):
    broken_off(tmp_path, params={"height": 2048, "window": (1, 2)})
    assert len(resume(tmp_path, params={"window": [1, 2], "height": 2048})) == 5  # order and tuples do not matter
    (tmp_path / "t.csv").unlink()
    broken_off(tmp_path, params={"height": 2048})
    assert len(resume(tmp_path, params={"height": 1024})) == 10

def test_a_changed_item_is_worked_on_again(tmp_path):
    broken_off(tmp_path)
    items = things(10)
    items[2]["x"] = 77
    assert resume(tmp_path, items) == ["007.dcm"] + [i["file"] for i in items][5:]

def test_items_may_be_added_removed_and_reordered(tmp_path):
    broken_off(tmp_path)  # 009 to 005 are done
    items = sorted(things(12), key=lambda i: i["file"])[1:]
    assert resume(tmp_path, items) == ["001.dcm", "002.dcm", "003.dcm", "004.dcm", "010.dcm", "011.dcm"]

def torn(journal, tear):
    "Cut the last row of a journal, whose end was not synced."
    journal.write_bytes(journal.read_bytes().removesuffix(SYNCED)[:-tear])

@pytest.mark.parametrize("tear", [1, 7, 30])
def test_a_torn_last_line_is_done_again(tmp_path, tear):
    torn(broken_off(tmp_path), tear)
    assert resume(tmp_path) == [i["file"] for i in things(10)][4:]

def test_a_journal_with_an_incomplete_line_can_be_continued_twice(tmp_path):
    journal = broken_off(tmp_path)
    torn(journal, 7)
    with pytest.raises(KeyboardInterrupt):
        map_files(interrupted_after(3, []), things(10), table=tmp_path / "t.csv", workers=1)
    assert [entry["row"]["square"] for entry in stored(journal)] == [81, 64, 49, 36, 25, 16]
    assert len(resume(tmp_path)) == 4

@pytest.mark.parametrize("content", [
    b"", b"\x00\xff garbage", b'{"params": nu', b'{"params": null}', b'{"params": null}\nnull\n',
    b'{"params": null}\n{"item": 3}\n{}\n'
])
def test_the_rows_of_a_damaged_journal_are_computed_again(tmp_path, content):
    (tmp_path / "t.csv.journal").write_bytes(content)
    assert len(resume(tmp_path)) == 10


# --- processes that die. Each runs as a script, where functions live in __main__ as they do in a notebook.

SCRIPT = """
import os, signal, sys
from pathlib import Path
import numpy as np
from mammo_nb.core.parallel import map_files
here, mode, parent = Path(sys.argv[1]), sys.argv[2], os.getpid()
place = {"workers": int(sys.argv[3])} if sys.argv[3].isdigit() else {"scheduler": sys.argv[3]}
scale = 3  # a global of the notebook

def work(item):
    with open(here / f"calls_{mode}", "a") as log:
        log.write(item["file"] + "\\n")
    if mode == "kill_parent" and item["file"] == "030":
        os.kill(parent, signal.SIGKILL)
    if mode == "kill_scheduler" and item["file"] == "030":
        os.kill(int((here / "scheduler").read_text()), signal.SIGKILL)
    if mode == "exit_always" and item["file"] == "027":
        os._exit(3)
    if mode == "killed_twice" and item["file"] in ("007", "021"):
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "exit_once" and item["file"] == "007" and not (here / "once").exists():
        (here / "once").touch()
        os._exit(3)
    if mode == "raise" and item["file"] == "007":
        raise RuntimeError("no")
    return {"value": item["x"] * scale, "root": np.sqrt(item["x"])}

items = [{"file": f"{i:03}", "x": i} for i in range(40)]
frame = map_files(work, items, table=here / "t.csv", params={"scale": scale}, **place)
"""

def run(folder, mode, workers=2):
    "Run the script; returns its exit status."
    (folder / "script.py").write_text(textwrap.dedent(SCRIPT))
    with open(folder / "stderr", "w") as stderr:  # a file: workers of a killed run would hold a pipe open
        command = [sys.executable, folder / "script.py", folder, mode, str(workers)]
        done = subprocess.run(command, stderr=stderr, timeout=120)
    expected = (1,) if mode == "kill_scheduler" else (0, -signal.SIGKILL)
    assert done.returncode in expected, (folder / "stderr").read_text()
    return done.returncode

def calls(folder, mode):
    return (folder / f"calls_{mode}").read_text().split()

@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_resumes_and_ends_the_same(tmp_path, workers):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    assert run(a, "kill_parent", workers) == -signal.SIGKILL
    assert not (a / "t.csv").exists()
    finished = len(stored(a / "t.csv.journal"))
    assert finished > 10  # by the thirtieth
    assert run(a, "again", workers) == 0
    assert len(calls(a, "again")) == 40 - finished  # no row of the journal is computed again
    assert run(b, "again", 1) == 0
    assert (a / "t.csv").read_bytes() == (b / "t.csv").read_bytes() and not (a / "t.csv.journal").exists()

def test_an_item_that_always_ends_its_process_is_one_error_row(tmp_path):
    assert run(tmp_path, "exit_always") == 0
    table = read(tmp_path / "t.csv")
    lost = table["error"] != ""
    assert table.loc[lost, "file"].tolist() == ["027"] and table.loc[lost, "error"].item().startswith("WorkerLost: ")
    assert table.loc[~lost, "value"].astype(float).tolist() == [i * 3 for i in range(40) if i != 27]
    assert calls(tmp_path, "exit_always").count("027") == 2  # tried once more
    # other items that were in progress or not yet fetched are computed again, too
    assert len(calls(tmp_path, "exit_always")) <= 40 + 20

def test_two_deaths_in_one_run(tmp_path):
    assert run(tmp_path, "killed_twice", 3) == 0
    table = read(tmp_path / "t.csv")
    assert table.loc[table["error"] != "", "file"].tolist() == ["007", "021"] and len(table) == 40

def test_a_process_that_dies_once_loses_no_row(tmp_path):
    assert run(tmp_path, "exit_once") == 0
    table = read(tmp_path / "t.csv")
    assert (table["error"] == "").all() and table["value"].tolist() == [i * 3 for i in range(40)]

def test_an_exception_is_one_error_row(tmp_path):
    assert run(tmp_path, "raise") == 0
    assert read(tmp_path / "t.csv")["error"].tolist() == ["RuntimeError: no" if i == 7 else "" for i in range(40)]

def test_a_function_that_cannot_be_sent_is_an_error_at_once(tmp_path):
    lock = threading.Lock()
    with pytest.raises(Exception, match="pickle"):
        map_files(lambda item: {"l": str(lock)}, things(4), table=tmp_path / "t.csv", workers=2)
    assert not (tmp_path / "t.csv").exists()


# --- short items share a task

def test_a_task_ends_with_its_time_or_before_an_item_that_raises():
    def fn(item):
        return 1 / item
    assert _work(fn, [1, 2, 4], 60)[0] == [1, .5, .25]
    assert _work(fn, [1, 2, 4], 0)[0] == [1]
    assert _work(fn, [1, 2, 0, 4], 60)[0] == [1, .5]   # what is finished is not lost
    with pytest.raises(ZeroDivisionError):
        _work(fn, [0, 1], 60)

def take_all(processes, items):
    "Start all items and take their results, as `rows_in_processes` does; returns names and results of each task."
    rest, tasks = iter(items), []
    while True:
        for _ in range(processes.room()):
            if (item := next(rest, None)) is not None:
                processes.start(*item)
        if not len(processes):
            return tasks
        tasks.append(processes.take(processes.events.get()))

@pytest.mark.parametrize("workers", [0, 2])
def test_short_items_share_tasks_and_each_has_its_own_result(workers):
    items = [(f"name {k}", k) for k in range(600)]
    with Processes(lambda k: k * k, workers, None, together=TOGETHER) as processes:
        tasks = take_all(processes, items)
    assert sorted(pair for task in tasks for pair in task) == sorted((name, k * k) for name, k in items)
    assert max(map(len, tasks)) <= MOST and (len(tasks) < 300 if workers else len(tasks) == 600)

def test_items_of_a_stream_are_tasks_of_their_own():
    with Processes(lambda k: -k, 2, None) as processes:
        assert {len(task) for task in take_all(processes, [(k, k) for k in range(40)])} == {1}

def test_a_death_in_a_shared_task_loses_one_item():
    def fn(k):
        if k == 451:
            os._exit(3)
        return k
    with Processes(fn, 2, "lost", together=TOGETHER) as processes:
        found = dict(pair for task in take_all(processes, [(k, k) for k in range(600)]) for pair in task)
    assert found == {**{k: k for k in range(600)}, 451: "lost"}


# --- a cluster. Its processes start with the first test that uses it, so that the tests above are not slowed down.

@pytest.fixture(scope="module")
def cluster():
    "Two worker processes, which are started again when they die."
    pytest.importorskip("distributed")  # importing it sets the defaults that are changed below
    import dask
    # 2 s instead of 30 s for a result in a process that has just been killed
    with dask.config.set({"distributed.comm.timeouts.connect": "2s"}):
        with local_cluster() as cluster:
            yield cluster

@pytest.fixture
def kill(cluster, tmp_path):
    """A function for items that kills their process when all workers are running, because Dask abandons a worker that
    dies while it starts."""
    asked, over = tmp_path / "asked", threading.Event()
    asked.mkdir()
    def executioner():
        while not over.is_set():
            up = all(nanny.process and nanny.process.status.name == "running" for nanny in cluster.workers.values())
            for pid in os.listdir(asked) if up else []:
                os.remove(asked / pid)
                os.kill(int(pid), signal.SIGKILL)
            over.wait(0.01)
    def kill(pid=None):
        (asked / str(pid or os.getpid())).touch()
        while pid is None:
            time.sleep(1)
    thread = threading.Thread(target=executioner)
    thread.start()
    yield kill
    over.set()
    thread.join()

def on(cluster):
    return {"scheduler": cluster.scheduler_address}

def same_as_here(fn, items, table, cluster):
    "Rows from the cluster, whose file must be equal to that from processes of this machine."
    map_files(fn, items, table=table.with_name("cluster.csv"), **on(cluster))
    map_files(fn, items, table=table.with_name("here.csv"), workers=2)
    assert table.with_name("cluster.csv").read_bytes() == table.with_name("here.csv").read_bytes()
    assert not list(table.parent.glob("*.journal"))
    return read(table.with_name("cluster.csv"))

def test_a_cluster_writes_the_same_table(tmp_path, cluster):
    items = things(30)
    items[4]["bad"] = True
    found = same_as_here(square, items, tmp_path / "t.csv", cluster)  # by name
    assert found["file"].tolist() == [i["file"] for i in items] and found["error"][4] == "ValueError: 025.dcm is bad"
    here = tmp_path / "pids"
    here.mkdir()
    def of_a_notebook(item):  # by value
        (here / str(os.getpid())).touch()
        return {"double": 2 * item["x"]}
    map_files(of_a_notebook, items, table=tmp_path / "t.csv", **on(cluster))
    assert {int(f.name) for f in here.iterdir()} <= {w.pid for w in cluster.workers.values()}

def test_a_killed_run_on_a_cluster_resumes_and_ends_the_same(tmp_path, cluster):
    test_a_killed_run_resumes_and_ends_the_same(tmp_path, cluster.scheduler_address)

def test_items_of_a_killed_worker_run_elsewhere(tmp_path, cluster, kill):
    marker = tmp_path / "died"
    def kills_once(item):
        if item["x"] == 7 and not marker.exists():
            marker.touch()
            kill()
        return square(item)
    found = same_as_here(kills_once, things(20), tmp_path / "t.csv", cluster)
    assert marker.exists() and (found["error"] == "").all() and len(found) == 20

def test_an_item_that_always_kills_its_worker_is_one_error_row(tmp_path, cluster, kill, monkeypatch):
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)  # 3 by default: three more deaths, two seconds each
    log = tmp_path / "log"
    def kills(item):
        with open(log, "a") as f:
            f.write(item["file"] + "\n")
        if item["x"] == 7:
            kill()
        return square(item)
    found = map_files(kills, things(20), table=tmp_path / "t.csv", **on(cluster))
    assert found["file"].tolist() == [i["file"] for i in things(20)]
    assert {f: e for f, e in zip(found["file"], found["error"]) if e} == {"007.dcm": LOST}
    assert found["square"].dropna().tolist() == [i["x"] ** 2 for i in things(20) if i["x"] != 7]
    assert log.read_text().split().count("007.dcm") == 2  # the second time alone

def test_a_bystander_of_a_death_gets_its_row(tmp_path, cluster, kill, monkeypatch):
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    victim, log = tmp_path / "victim", tmp_path / "log"
    def work(item):
        with open(log, "a") as f:
            f.write(item["file"] + "\n")
        if item["x"] == 1 and not os.path.lexists(victim):
            os.symlink(str(os.getpid()), victim)  # appears whole
            while True:
                time.sleep(1)
        if item["x"] == 0:
            while not os.path.lexists(victim):
                time.sleep(0.01)
            kill(os.readlink(victim))
        return square(item)
    found = map_files(work, things(2), table=tmp_path / "t.csv", **on(cluster))
    assert (found["error"] == "").all() and found["square"].tolist() == [1, 0]
    assert sorted(log.read_text().split()) == ["000.dcm", "001.dcm", "001.dcm"]

def test_workers_that_do_not_fit_are_told_before_the_first_item(tmp_path, cluster, monkeypatch):
    log = tmp_path / "log"
    def work(item):
        log.touch()
        return square(item)
    before = broken_off(tmp_path).read_bytes()
    monkeypatch.setattr(dask_cluster, "facts", lambda paths: ("0" * 64, "2.7", ("/nowhere/scans",)))
    with pytest.raises(BackendError) as e:
        map_files(work, things(10), table=tmp_path / "t.csv", **on(cluster))
    told = re.match(r"(\d) of \1 workers", str(e.value))   # one that was killed before may not be back yet
    assert told and str(e.value).count("has other code than the one here") == int(told[1])
    assert "and not 2.7" in str(e.value) and "does not see /nowhere/scans" in str(e.value)
    assert str(e.value).count("tcp://") == int(told[1])
    assert not log.exists() and (tmp_path / "t.csv.journal").read_bytes().startswith(before)

def test_a_worker_that_joins_later_is_asked_before_its_first_item(tmp_path, cluster, monkeypatch):
    with dask_cluster.connect_cluster(cluster.scheduler_address) as client:
        monkeypatch.setattr(dask_cluster, "check_workers", lambda *_: None)   # as if all others had been asked
        with pytest.raises(BackendError, match="does not see /nowhere"):
            list(rows_on_cluster(client, square, {"a": things(1)[0]}, ["/nowhere"]))

def test_the_address_is_a_setting_that_all_commands_obey(tmp_path, cluster, monkeypatch):
    monkeypatch.delenv("MAMMO_NB_SCHEDULER", raising=False)
    (tmp_path / "settings.ini").write_text(f"[cluster]\nscheduler = {cluster.scheduler_address}\n")
    monkeypatch.chdir(tmp_path)
    workers, here = {w.pid for w in cluster.workers.values()}, os.getpid()
    def who(item):
        return {"pid": os.getpid()}
    assert set(map_files(who, things(6), table=tmp_path / "t.csv")["pid"]) <= workers
    with monkeypatch.context() as patch:   # the environment overrides the file, and an argument overrides both
        patch.setenv("MAMMO_NB_SCHEDULER", "")
        assert read_scheduler() == ""
        assert set(map_files(who, things(2), table=tmp_path / "t.csv", workers=1)["pid"]) == {here}
    assert set(map_files(who, things(2), table=tmp_path / "t.csv", workers=1, scheduler="")["pid"]) == {here}
    monkeypatch.setattr("mammo_nb.mammo.reading.sides.rows_in_processes", None)   # headers are read by the workers, too
    assert identify_files(tmp_path, ["p/a.dcm"], {})["p/a.dcm"]["patient_id"] == "p"
    monkeypatch.chdir("/")
    assert read_scheduler() == ""   # without a settings.ini

def serve(what, *arguments):
    "A part of a cluster in a process of its own."
    return subprocess.Popen([sys.executable, "-m", f"distributed.cli.dask_{what}", *map(str, arguments)],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

def test_a_scheduler_that_is_killed_and_started_again(tmp_path):
    pytest.importorskip("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, a, b = f"tcp://127.0.0.1:{port}", tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()

    def start():
        scheduler = serve("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")
        (a / "scheduler").write_text(str(scheduler.pid))
        while scheduler.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                continue
        return [scheduler, serve("worker", address, "--nthreads", 1, "--no-nanny", "--no-dashboard")]

    parts = start()
    try:
        assert run(a, "kill_scheduler", address) == 1
        assert "the scheduler is gone" in (a / "stderr").read_text()
        finished = len(stored(a / "t.csv.journal"))
        assert 10 < finished < 40 and parts[0].wait() == -signal.SIGKILL
        parts += start()
        assert run(a, "again", address) == 0
    finally:
        for part in parts:
            part.kill()
            part.wait()
    assert len(calls(a, "again")) == 40 - finished
    assert run(b, "again", 1) == 0
    assert (a / "t.csv").read_bytes() == (b / "t.csv").read_bytes()

def test_a_function_that_cannot_be_sent_to_a_cluster_is_an_error_at_once(tmp_path, cluster):
    lock = threading.Lock()
    with pytest.raises(Exception, match="serialize"):
        map_files(lambda item: {"l": str(lock)}, things(4), table=tmp_path / "t.csv", **on(cluster))

def test_a_run_waits_for_the_first_worker_with_a_message(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=0, threads_per_worker=1, processes=False, protocol="tcp",
                                  dashboard_address=":0") as cluster:
        messages = []
        monkeypatch.setattr(dask_cluster.tqdm, "write", lambda text: (messages.append(text), cluster.scale(1)))
        assert map_files(square, things(3), table=tmp_path / "t.csv", **on(cluster))["square"].tolist() == [4, 1, 0]
    assert len(messages) == 1 and "no workers at" in messages[0]

def test_a_scheduler_that_goes_away_leaves_the_journal(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol="tcp",
                                       dashboard_address=":0")
    monkeypatch.setattr(dask_cluster, "PATIENCE", 1)  # seconds in which the client tries to find the scheduler again
    add, added = Journal.add, []
    def add_and_close(self, item, row):
        add(self, item, row)
        added.append(item)
        if len(added) == 3:
            cluster.close()
    with monkeypatch.context() as patch, pytest.raises(BackendError, match="scheduler is gone"):
        patch.setattr(Journal, "add", add_and_close)
        map_files(square, things(10), table=tmp_path / "t.csv", **on(cluster))
    kept = len(stored(tmp_path / "t.csv.journal"))
    assert kept >= 3 and len(resume(tmp_path)) == 10 - kept

def test_errors_of_a_backend_say_what_to_do(tmp_path, monkeypatch):
    before = broken_off(tmp_path, params={"height": 2048}).read_bytes()
    def message(**place):
        with pytest.raises(BackendError) as e:
            map_files(square, things(10), table=tmp_path / "t.csv", **place)  # other params would start anew
        return str(e.value)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "distributed", None)
        assert "pip install distributed" in message(scheduler="tcp://127.0.0.1:8786")
    pytest.importorskip("distributed")
    monkeypatch.setattr(dask_cluster, "PATIENCE", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = "tcp://127.0.0.1:{}".format(silent.getsockname()[1])
        # the connection is refused
        assert f"no Dask scheduler responds at {address}" in message(scheduler=address)
        silent.listen()
        # the connection is accepted, but nothing is sent
        assert f"no Dask scheduler responds at {address}" in message(scheduler=address)
    assert "missing port" in message(scheduler="somewhere")
    assert (tmp_path / "t.csv.journal").read_bytes() == before

def test_nothing_of_dask_is_imported_without_need(tmp_path):
    code = ("import sys; from mammo_nb.core.parallel import map_files; map_files(dict, [{'file': 'a'}, {'file': "
        "'b'}], table=sys.argv[1], workers=2); assert not {'dask', 'distributed'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code, tmp_path / "t.csv"], check=True, timeout=120)


def test_a_child_that_drew_in_processes_ends_with_its_work():
    "A child of multiprocessing waits for its processes at its end, and joblib would keep them for five minutes."
    code = """import multiprocessing, os
from joblib import delayed
from mammo_nb.core.processes import in_processes
def draw():
    while len(set(in_processes((delayed(os.getpid)() for _ in range(100)), 2))) < 2:
        pass   # until both have started
child = multiprocessing.get_context("fork").Process(target=draw)
child.start()
child.join(120)
print(child.exitcode)
child.kill()"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "0\n", done.stderr
