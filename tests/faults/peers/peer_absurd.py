"""Absurd: tasks on a queue, each step a `ctx.step`. Its claims last 5 s here, and 120 by default."""

from __future__ import annotations

import os

from absurd_sdk import Absurd
from absurd_sdk import TimeoutError as TimedOut
from notes import body, main, note, serve

URL = os.environ["FAULTS_DATABASE"]


def setup():
    import absurdctl
    import psycopg

    with psycopg.connect(URL, autocommit=True) as connection:
        connection.execute(absurdctl.BUNDLED_SCHEMA_SQL)
        connection.execute("SELECT absurd.create_queue('runs')")


def worker():
    app = Absurd(URL, queue_name="runs")

    @app.register_task("work", queue="runs")
    def work(told, ctx):
        for i in range(told["steps"]):
            ctx.step(f"step{i}", lambda i=i: body(told["run"], i, told["seconds"]))
        note("done", told["run"])

    @app.register_task("wait", queue="runs")
    def wait(told, ctx):
        run, when = told["run"], "in"
        ctx.step("asks", lambda: note("asks", run))
        try:
            ctx.await_event(f"go:{run}", "first", timeout=int(told["seconds"]))
        except TimedOut:
            ctx.step("late", lambda: None)
            ctx.await_event(f"go:{run}", "again", timeout=60)
            when = "late"
        note(when, run)
        note("done", run)

    app.start_worker(claim_timeout=5, concurrency=8, poll_interval=0.1)


def client():
    app = Absurd(URL, queue_name="runs")

    def start(**told):
        app.spawn(told.pop("kind"), told, queue="runs", max_attempts=100)

    serve(start, lambda run: app.emit_event(f"go:{run}", {"ok": True}, queue_name="runs"))


main(setup=setup, worker=worker, client=client)
