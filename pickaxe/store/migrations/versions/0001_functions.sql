-- The moves that touch a run and a step together. Each call is one statement and one commit.
-- Locks are taken in the order run, step; only a gathered step's own row and its gather's come first,
-- because siblings that finish together must not queue up on the run.

-- A run is woken: its arrivals grow by one. Returns the arrival's seq (null: the run is over), and whether
-- the caller is the one that has to publish it.
CREATE FUNCTION pickaxe.wake(p_run uuid, p_redispatch double precision, OUT seq integer, OUT woken boolean)
LANGUAGE plpgsql AS $$
DECLARE before text;
BEGIN
    SELECT r.state INTO before FROM pickaxe.run r WHERE r.id = p_run FOR UPDATE;
    woken := coalesce(before = 'waiting', false);
    IF before IN ('ready', 'waiting', 'paused') THEN
        UPDATE pickaxe.run r SET
            wake = r.wake + 1,
            state = CASE WHEN woken THEN 'ready' ELSE r.state END,
            due = CASE WHEN woken THEN clock_timestamp() + make_interval(secs => p_redispatch) ELSE r.due END,
            dispatches = CASE WHEN woken THEN 0 ELSE r.dispatches END
        WHERE r.id = p_run
        RETURNING r.wake INTO seq;
    END IF;
END $$;

-- A step ends. Guarded by the states it may come from and, when given, by attempt and owner: a stale owner
-- changes nothing. A plain step arrives at its run; a gathered one is counted once by its gather, and the
-- gather arrives when that decides it. `accepted` tells whether the outcome was taken, `woken` whether the
-- run must be published, `released` the keys of blocked siblings that may now run.
CREATE FUNCTION pickaxe.settle(
    p_run uuid, p_key text, p_from text[], p_attempt integer, p_owner text,
    p_state text, p_output text, p_error text, p_redispatch double precision,
    OUT accepted boolean, OUT woken boolean, OUT seq integer, OUT released text[]
) LANGUAGE plpgsql AS $$
DECLARE
    s pickaxe.step%ROWTYPE;
    g pickaxe.step%ROWTYPE;
    o jsonb;
    place integer;
    fired text;
BEGIN
    accepted := false; woken := false; released := '{}';
    SELECT group_key INTO s.group_key FROM pickaxe.step WHERE run_id = p_run AND key = p_key;
    IF s.group_key IS NULL THEN
        PERFORM 1 FROM pickaxe.run WHERE id = p_run FOR UPDATE;
    END IF;
    SELECT * INTO s FROM pickaxe.step
        WHERE run_id = p_run AND key = p_key AND state = ANY (p_from)
            AND (p_attempt IS NULL OR attempt = p_attempt) AND (p_owner IS NULL OR owner = p_owner)
        FOR UPDATE;
    IF NOT FOUND THEN RETURN; END IF;
    accepted := true;

    IF s.group_key IS NULL THEN
        SELECT w.seq, w.woken INTO seq, woken FROM pickaxe.wake(p_run, p_redispatch) w;
    ELSE
        UPDATE pickaxe.step t SET
            counted = t.counted + 1, failed = t.failed + (p_state <> 'succeeded')::integer
            WHERE t.run_id = p_run AND t.key = s.group_key AND t.state = 'waiting'
            RETURNING t.* INTO g;
        IF FOUND THEN
            place := g.counted - 1;
            o := g.options::jsonb;
            fired := CASE
                WHEN o->>'quorum' IS NOT NULL AND g.counted - g.failed >= (o->>'quorum')::integer THEN 'succeeded'
                WHEN o->>'quorum' IS NOT NULL
                    AND (o->>'count')::integer - g.failed < (o->>'quorum')::integer THEN 'failed'
                WHEN o->>'quorum' IS NULL AND g.failed > 0 AND NOT (o->>'tolerant')::boolean THEN 'failed'
                WHEN o->>'quorum' IS NULL AND g.counted = (o->>'count')::integer THEN 'succeeded'
            END;
        END IF;
    END IF;

    UPDATE pickaxe.step SET
        state = p_state, output = p_output, error = p_error, seq = settle.seq, ordinal = place,
        due = NULL, expires = NULL, owner = NULL, reason = NULL, finished_at = clock_timestamp()
        WHERE run_id = p_run AND key = p_key;

    IF fired IS NOT NULL THEN
        SELECT w.seq, w.woken INTO seq, woken FROM pickaxe.wake(p_run, p_redispatch) w;
        UPDATE pickaxe.step SET state = fired, seq = settle.seq, finished_at = clock_timestamp()
            WHERE run_id = p_run AND key = s.group_key;
    ELSIF g.key IS NOT NULL AND o->>'limit' IS NOT NULL AND s.state <> 'blocked' THEN
        -- What ended while it was still blocked had no place to pass on.
        WITH next AS (
            SELECT key FROM pickaxe.step
            WHERE run_id = p_run AND group_key = g.key AND state = 'blocked'
            ORDER BY index LIMIT 1 FOR UPDATE SKIP LOCKED
        ), freed AS (
            UPDATE pickaxe.step t SET state = CASE WHEN t.kind = 'tool' THEN 'ready' ELSE 'waiting' END,
                due = CASE WHEN t.kind = 'tool' THEN clock_timestamp() + make_interval(secs => p_redispatch) END
            FROM next WHERE t.run_id = p_run AND t.key = next.key
            RETURNING t.key, t.kind
        ), started AS (
            UPDATE pickaxe.run c SET due = clock_timestamp() + make_interval(secs => p_redispatch)
            FROM freed WHERE freed.kind = 'child' AND c.parent_run = p_run AND c.parent_step = freed.key
                AND c.state = 'ready' AND c.due IS NULL
        )
        SELECT coalesce(array_agg(key), '{}') INTO released FROM freed;
    END IF;
END $$;

-- A run ends: its own row, and the step of the parent that waits for it. The caller holds the run's row.
CREATE FUNCTION pickaxe.report_to_parent(
    p_run uuid, p_redispatch double precision,
    OUT parent uuid, OUT woken boolean, OUT released text[]
) LANGUAGE plpgsql AS $$
DECLARE r pickaxe.run%ROWTYPE;
BEGIN
    woken := false; released := '{}';
    SELECT * INTO r FROM pickaxe.run WHERE id = p_run;
    IF r.parent_run IS NULL THEN RETURN; END IF;
    parent := r.parent_run;
    SELECT t.woken, t.released INTO woken, released FROM pickaxe.settle(
        r.parent_run, r.parent_step, '{blocked,waiting,cancelling}', NULL, NULL,
        r.state, r.output, r.error, p_redispatch) t;
END $$;

-- Locks the steps that a reduction cancels in the order in which a gathered step ends: itself, its gather, then the
-- run. Else the two would block each other until Postgres notices, which takes a second.
CREATE FUNCTION pickaxe.lock_gathered(p_run uuid, p_keys text[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_keys <> '{}' THEN
        PERFORM 1 FROM pickaxe.step
            WHERE run_id = p_run AND key = ANY (p_keys) AND group_key IS NOT NULL ORDER BY key FOR UPDATE;
        PERFORM 1 FROM pickaxe.step
            WHERE run_id = p_run AND key = ANY (p_keys) AND kind = 'gather' ORDER BY key FOR UPDATE;
    END IF;
END $$;

-- A reduction is committed: all of it, or nothing if another was committed, or the run was cancelled, since it was
-- loaded. Arrivals that came meanwhile do not undo it, for it holds for all that came before them: the run then is
-- `moved`, stays ready, and is reduced again. `p_steps` is a JSON array of new steps, `p_children` of child runs.
-- `p_arrived` is 1 when an outcome arrives in this very commit (see `advance`), which needs no waking before it.
CREATE FUNCTION pickaxe.commit_reduction(
    p_run uuid, p_epoch integer, p_head integer, p_wake integer, p_redispatch double precision,
    p_state text, p_new_head integer, p_output text, p_error text, p_reason text, p_published text,
    p_started timestamptz, p_owner text, p_steps json, p_children json,
    p_cancels text[], p_settled_keys text[], p_settled_seqs integer[], p_carried integer[], p_arrived integer,
    OUT committed boolean, OUT moved boolean,
    OUT parent uuid, OUT parent_woken boolean, OUT released text[], OUT orphans uuid[]
) LANGUAGE plpgsql AS $$
DECLARE
    r pickaxe.run%ROWTYPE;
    over boolean := p_state IN ('succeeded', 'failed', 'cancelled');
BEGIN
    committed := false; moved := false; parent_woken := false; released := '{}'; orphans := '{}';
    PERFORM pickaxe.lock_gathered(p_run, p_cancels);
    UPDATE pickaxe.run t SET
        state = CASE WHEN p_state = 'waiting' AND t.wake > p_wake THEN 'ready' ELSE p_state END,
        head = p_new_head,
        wake = t.wake + p_arrived,
        output = CASE WHEN over THEN p_output ELSE t.output END,
        error = p_error, reason = p_reason,
        published = coalesce(p_published, t.published),
        started_at = coalesce(t.started_at, p_started),
        chapter_at = CASE WHEN p_state = 'ready' THEN clock_timestamp() ELSE coalesce(t.chapter_at, p_started) END,
        due = CASE WHEN p_state = 'ready' OR p_state = 'waiting' AND t.wake > p_wake
            THEN clock_timestamp() + make_interval(secs => p_redispatch) END,
        dispatches = 0,
        chapter = t.chapter + (p_state = 'ready')::integer,
        epoch = t.epoch + 1,
        input = CASE WHEN p_state = 'ready' THEN p_output ELSE t.input END,
        deadline = CASE WHEN over THEN NULL ELSE t.deadline END,
        -- One that the chapter has seen is not seen again by the next, which may be cancelled anew.
        cancel_seq = CASE WHEN p_state = 'ready' AND t.cancel_seq <> ALL (p_carried) THEN NULL ELSE t.cancel_seq END,
        finished_at = CASE WHEN over THEN clock_timestamp() END
    WHERE t.id = p_run AND t.epoch = p_epoch AND t.head = p_head AND t.wake >= p_wake
        AND (t.state = 'ready' OR t.state = 'waiting' AND p_arrived > 0)
    RETURNING t.* INTO r;
    IF NOT FOUND THEN RETURN; END IF;
    committed := true;
    moved := r.state = 'ready' AND p_state = 'waiting';

    IF p_steps IS NOT NULL THEN
        INSERT INTO pickaxe.step (
            run_id, key, chapter, born, kind, name, digest, state, queue, priority, due, expires, total_timeout,
            group_key, index, counted, failed, input, options, owner, ran_by, attempt, started_at)
        SELECT p_run, n.key, r.chapter, r.epoch, n.kind, n.name, n.digest, n.state, n.queue, coalesce(n.priority, r.priority),
            CASE
                WHEN n.due IS NOT NULL THEN to_timestamp(n.due)
                WHEN n.due_in IS NOT NULL THEN clock_timestamp() + make_interval(secs => n.due_in)
            END,
            clock_timestamp() + make_interval(secs => n.expires_in), n.total_timeout,
            n.group_key, n.index, CASE WHEN n.kind = 'gather' THEN 0 END, CASE WHEN n.kind = 'gather' THEN 0 END,
            n.input, n.options, CASE WHEN n.state = 'running' THEN p_owner END, CASE WHEN n.state = 'running' THEN p_owner END,
            (n.state = 'running')::integer, CASE WHEN n.state = 'running' THEN clock_timestamp() END
        FROM json_to_recordset(p_steps) AS n(
            key text, kind text, name text, digest text, state text, queue text, priority smallint,
            due double precision, due_in double precision, expires_in double precision,
            total_timeout double precision, group_key text, index integer, input text, options text);
    END IF;

    IF p_children IS NOT NULL THEN
        INSERT INTO pickaxe.run (id, agent, version, state, queue, priority, due, deadline, input,
            parent_run, parent_step, root, metadata)
        SELECT n.id, n.agent, n.version, 'ready', n.queue, coalesce(n.priority, r.priority),
            CASE WHEN NOT n.held THEN clock_timestamp() + make_interval(secs => p_redispatch) END,
            clock_timestamp() + make_interval(secs => n.timeout), n.input, p_run, n.step, r.root, r.metadata
        FROM json_to_recordset(p_children) AS n(
            id uuid, agent text, version text, held boolean, queue text, priority smallint,
            timeout double precision, input text, step text)
        ON CONFLICT (id) DO NOTHING;
    END IF;

    IF p_cancels <> '{}' THEN
        WITH dropped AS (
            UPDATE pickaxe.step s SET
                -- A child run that was held back has nothing to detach: nobody else would ever start it.
                state = CASE WHEN s.kind = 'child'
                    AND (s.state = 'blocked' OR s.options::jsonb->>'policy' <> 'detach')
                    THEN 'cancelling' ELSE 'cancelled' END,
                due = CASE WHEN s.kind = 'child'
                    AND (s.state = 'blocked' OR s.options::jsonb->>'policy' <> 'detach')
                    THEN clock_timestamp() END,
                dispatches = 0, expires = NULL, owner = NULL, finished_at = clock_timestamp()
            WHERE s.run_id = p_run AND s.key = ANY (p_cancels)
                AND s.state IN ('blocked', 'ready', 'running', 'waiting')
            RETURNING s.key, s.kind, s.state
        )
        SELECT coalesce(array_agg(c.id), '{}') INTO orphans
        FROM dropped JOIN pickaxe.run c ON c.parent_run = p_run AND c.parent_step = dropped.key
        WHERE dropped.state = 'cancelling';
    END IF;

    IF p_settled_keys <> '{}' THEN
        UPDATE pickaxe.step s SET
            state = 'succeeded', seq = g.seq, output = g.payload, due = NULL, finished_at = clock_timestamp()
        FROM unnest(p_settled_keys, p_settled_seqs) AS u(key, seq)
            JOIN pickaxe.signal g ON g.run_id = p_run AND g.seq = u.seq
        WHERE s.run_id = p_run AND s.key = u.key AND s.state = 'waiting';
    END IF;

    IF p_state = 'ready' THEN
        UPDATE pickaxe.signal SET chapter = r.chapter WHERE run_id = p_run AND (seq = ANY (p_carried) OR seq > p_new_head);
    END IF;
    IF over THEN
        SELECT t.parent, t.woken, t.released INTO parent, parent_woken, released
            FROM pickaxe.report_to_parent(p_run, p_redispatch) t;
    END IF;
END $$;

-- A step ends and its run goes on, in one commit: the outcome is recorded at `p_at`, and with it the reduction that
-- has seen it as the run's next arrival. If anything else came meanwhile, the outcome is recorded as by `settle`, and
-- the reduction is not.
CREATE FUNCTION pickaxe.advance(
    p_run uuid, p_key text, p_attempt integer, p_step_owner text, p_outcome text,
    p_step_output text, p_step_error text, p_at timestamptz,
    p_epoch integer, p_head integer, p_wake integer, p_redispatch double precision,
    p_state text, p_new_head integer, p_output text, p_error text, p_reason text, p_published text,
    p_started timestamptz, p_owner text, p_steps json, p_children json,
    p_cancels text[], p_settled_keys text[], p_settled_seqs integer[], p_carried integer[],
    OUT accepted boolean, OUT woken boolean, OUT seq integer, OUT step_released text[],
    OUT committed boolean, OUT moved boolean,
    OUT parent uuid, OUT parent_woken boolean, OUT released text[], OUT orphans uuid[]
) LANGUAGE plpgsql AS $$
BEGIN
    committed := false; moved := false; parent_woken := false; released := '{}'; orphans := '{}';
    PERFORM pickaxe.lock_gathered(p_run, p_cancels);
    PERFORM 1 FROM pickaxe.run r
        WHERE r.id = p_run AND r.epoch = p_epoch AND r.head = p_head AND r.wake = p_wake
            AND r.state IN ('ready', 'waiting')
        FOR UPDATE;
    IF NOT FOUND THEN
        SELECT t.accepted, t.woken, t.seq, t.released INTO accepted, woken, seq, step_released FROM pickaxe.settle(
            p_run, p_key, '{running}', p_attempt, p_step_owner, p_outcome, p_step_output, p_step_error, p_redispatch) t;
        RETURN;
    END IF;
    accepted := false; woken := false; seq := p_wake + 1; step_released := '{}';
    UPDATE pickaxe.step s SET
        state = p_outcome, output = p_step_output, error = p_step_error, seq = p_wake + 1,
        due = NULL, expires = NULL, owner = NULL, reason = NULL, finished_at = p_at
        WHERE s.run_id = p_run AND s.key = p_key AND s.state = 'running' AND s.group_key IS NULL
            AND s.attempt = p_attempt AND s.owner = p_step_owner;
    IF NOT FOUND THEN RETURN; END IF;
    accepted := true;
    SELECT c.committed, c.moved, c.parent, c.parent_woken, c.released, c.orphans
        INTO committed, moved, parent, parent_woken, released, orphans
        FROM pickaxe.commit_reduction(
            p_run, p_epoch, p_head, p_wake, p_redispatch, p_state, p_new_head, p_output, p_error, p_reason, p_published,
            p_started, p_owner, p_steps, p_children, p_cancels, p_settled_keys, p_settled_seqs, p_carried, 1) c;
END $$;

-- A run is told to stop. Its agent sees a CancelledError as its next arrival and may clean up; a run that
-- has not begun, that is paused, or that is forced ends here and now, with all of its open steps.
CREATE FUNCTION pickaxe.cancel_run(
    p_run uuid, p_reason text, p_timed_out boolean, p_force boolean, p_error text, p_redispatch double precision,
    OUT known boolean, OUT told boolean, OUT woken boolean, OUT ended boolean,
    OUT parent uuid, OUT parent_woken boolean, OUT released text[], OUT orphans uuid[]
) LANGUAGE plpgsql AS $$
DECLARE
    r pickaxe.run%ROWTYPE;
    s integer;
BEGIN
    told := false; woken := false; ended := false; parent_woken := false; released := '{}'; orphans := '{}';
    SELECT * INTO r FROM pickaxe.run WHERE id = p_run FOR UPDATE;
    known := FOUND;
    IF NOT known OR r.state IN ('succeeded', 'failed', 'cancelled') THEN RETURN; END IF;
    IF p_force OR r.state = 'paused' OR r.started_at IS NULL THEN
        ended := true;
        UPDATE pickaxe.run SET
            state = CASE WHEN p_timed_out THEN 'failed' ELSE 'cancelled' END, epoch = epoch + 1, error = p_error,
            reason = NULL, due = NULL, deadline = NULL, cancel_reason = p_reason, timed_out = p_timed_out,
            finished_at = clock_timestamp()
            WHERE id = p_run;
        UPDATE pickaxe.step SET
            state = CASE WHEN kind = 'child' AND (state = 'blocked' OR options::jsonb->>'policy' <> 'detach')
                THEN 'cancelling' ELSE 'cancelled' END,
            due = CASE WHEN kind = 'child' AND (state = 'blocked' OR options::jsonb->>'policy' <> 'detach')
                THEN clock_timestamp() END,
            dispatches = 0, expires = NULL, owner = NULL, finished_at = clock_timestamp()
            WHERE run_id = p_run AND state IN ('blocked', 'ready', 'running', 'waiting');
        SELECT coalesce(array_agg(c.id), '{}') INTO orphans
            FROM pickaxe.step t JOIN pickaxe.run c ON c.parent_run = p_run AND c.parent_step = t.key
            WHERE t.run_id = p_run AND t.state = 'cancelling';
        SELECT t.parent, t.woken, t.released INTO parent, parent_woken, released
            FROM pickaxe.report_to_parent(p_run, p_redispatch) t;
    ELSIF r.cancel_seq IS NULL THEN
        told := true;
        SELECT w.seq, w.woken INTO s, woken FROM pickaxe.wake(p_run, p_redispatch) w;
        UPDATE pickaxe.run SET
            epoch = epoch + 1, cancel_seq = s, cancel_at = clock_timestamp(), cancel_reason = p_reason,
            timed_out = p_timed_out, deadline = NULL
            WHERE id = p_run;
    END IF;
END $$;

-- A message to a run. Buffered until the run waits for it; a key seen before changes nothing.
CREATE FUNCTION pickaxe.send_signal(
    p_run uuid, p_name text, p_payload text, p_key text, p_redispatch double precision,
    OUT state text, OUT woken boolean
) LANGUAGE plpgsql AS $$
DECLARE
    r pickaxe.run%ROWTYPE;
    s integer;
BEGIN
    woken := false;
    SELECT * INTO r FROM pickaxe.run WHERE id = p_run FOR UPDATE;
    state := r.state;
    IF NOT FOUND OR r.state IN ('succeeded', 'failed', 'cancelled') THEN RETURN; END IF;
    IF p_key IS NOT NULL AND EXISTS (
        SELECT 1 FROM pickaxe.signal g WHERE g.run_id = p_run AND g.idempotency_key = p_key) THEN RETURN;
    END IF;
    SELECT w.seq, w.woken INTO s, woken FROM pickaxe.wake(p_run, p_redispatch) w;
    INSERT INTO pickaxe.signal (run_id, seq, chapter, name, payload, idempotency_key)
        VALUES (p_run, s, r.chapter, p_name, p_payload, p_key);
END $$;
