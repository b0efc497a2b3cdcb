"""Watches a test database from inside: what is over stays as it ended, and what may only grow grows.

Triggers write down every change that breaks this, whoever made it. It is I2 and I5 seen from the rows: a second result,
or the write of a stale owner, would have to change an outcome, or go back behind an epoch, a head or an attempt.
"""

from __future__ import annotations

import psycopg

_AUDIT = """
CREATE TABLE public.broken (what text, id text, before text, after text, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION public.audit_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.state IN ('succeeded', 'failed', 'cancelled')
        AND (OLD.state, OLD.output, OLD.error, OLD.finished_at) IS DISTINCT FROM
            (NEW.state, NEW.output, NEW.error, NEW.finished_at)
        OR NEW.epoch < OLD.epoch OR NEW.head < OLD.head OR NEW.wake < OLD.wake OR NEW.chapter < OLD.chapter
    THEN INSERT INTO public.broken VALUES ('run', OLD.id, OLD::text, NEW::text);
    END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION public.audit_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.state IN ('succeeded', 'failed', 'cancelled')
        AND (OLD.state, OLD.output, OLD.error, OLD.seq, OLD.ordinal, OLD.attempt) IS DISTINCT FROM
            (NEW.state, NEW.output, NEW.error, NEW.seq, NEW.ordinal, NEW.attempt)
        OR NEW.attempt < OLD.attempt OR NEW.deaths < OLD.deaths OR NEW.counted < OLD.counted
        OR OLD.input <> NEW.input
    THEN INSERT INTO public.broken VALUES ('step', OLD.run_id || '/' || OLD.key, OLD::text, NEW::text);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER UPDATE ON pickaxe.run FOR EACH ROW EXECUTE FUNCTION public.audit_run();
CREATE TRIGGER audit AFTER UPDATE ON pickaxe.step FOR EACH ROW EXECUTE FUNCTION public.audit_step();
"""


def watch(url: str) -> None:
    """From now on, note every change that should be impossible."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_AUDIT)


def check(url: str) -> None:
    """Fails, with both sides, if there was one."""
    with psycopg.connect(url) as connection:
        broken = connection.execute("SELECT what, id, before, after, at FROM public.broken ORDER BY at").fetchall()
    assert not broken, "\n".join(map(str, broken))
