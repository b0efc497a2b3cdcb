"""DBOS Transact: workflows on a queue, each step a `@DBOS.step`.

Without its Conductor, an executor's workflows are recovered by the executor of the same name, when that starts.
"""

from __future__ import annotations

import os
import time

from notes import body, main, note, serve

URL, NAME = os.environ["FAULTS_DATABASE"], os.environ.get("FAULTS_WORKER", "setup")


def app():
    from dbos import DBOS

    DBOS(
        config={
            "name": "faults", "system_database_url": URL, "application_version": "1", "executor_id": NAME,
            "run_admin_server": False, "enable_otlp": False, "log_level": "WARNING",
        }
    )  # fmt: skip

    @DBOS.step()
    def step(run, i, seconds):
        return body(run, i, seconds)

    @DBOS.workflow(name="work")
    def work(run, steps, seconds):
        for i in range(steps):
            step(run, i, seconds)
        note("done", run)

    @DBOS.workflow(name="wait")
    def wait(run, steps, seconds):
        note("asks", run)
        when = "in" if DBOS.recv("go", timeout_seconds=seconds) is not None else "late"
        if when == "late" and DBOS.recv("go", timeout_seconds=60) is None:
            when = "never"
        note(when, run)
        note("done", run)

    return DBOS


def setup():
    dbos = app()
    dbos.listen_queues(["nothing"])
    dbos.launch()
    dbos.register_queue("runs", worker_concurrency=8, polling_interval_sec=0.1)
    os._exit(0)


def worker():
    app().launch()
    while True:
        time.sleep(3600)


def client():
    from dbos import DBOSClient

    own = DBOSClient(system_database_url=URL, application_name="faults")

    def start(kind, run, steps, seconds):
        own.enqueue({"workflow_name": kind, "queue_name": "runs", "workflow_id": run}, run, steps, seconds)

    serve(start, lambda run: own.send(run, "go", "go"))


main(setup=setup, worker=worker, client=client)
