"""Watches every change of state in a test database, and compares with the transition tables."""

from __future__ import annotations

import psycopg

from pickaxe._states import RUN_TRANSITIONS, STEP_TRANSITIONS, RunState, StepState

_WATCH = """
CREATE TABLE seen (what text, before text, after text, UNIQUE (what, before, after));
CREATE FUNCTION saw() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.seen VALUES (TG_TABLE_NAME, OLD.state, NEW.state) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER saw AFTER UPDATE ON pickaxe.run FOR EACH ROW EXECUTE FUNCTION saw();
CREATE TRIGGER saw AFTER UPDATE ON pickaxe.step FOR EACH ROW EXECUTE FUNCTION saw();
"""


def watch(url: str) -> None:
    """From now on, note every change of state in this database."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_WATCH)


def check(url: str) -> set[tuple[str, str, str]]:
    """What was seen. Fails if a change is in neither table."""
    with psycopg.connect(url) as connection:
        seen = set(connection.execute("SELECT what, before, after FROM seen").fetchall())
    for what, before, after in seen:
        if what == "run":
            assert after in RUN_TRANSITIONS[RunState(before)], f"a run went {before} → {after}"
        else:
            assert after in STEP_TRANSITIONS[StepState(before)], f"a step went {before} → {after}"
    return seen
