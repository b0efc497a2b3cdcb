-- The moves of 0001 as they are now that a step can be set aside, what they share, and, from 0002, what is asked before
-- a suspect reduction. Whatever a database has of these is replaced.

-- A run is woken: its arrivals grow by one. Returns the arrival's seq (null: the run is over), and whether
-- the caller is the one that has to publish it.
CREATE OR REPLACE FUNCTION pickaxe.wake(p_run uuid, p_redispatch double precision, OUT seq integer, OUT woken boolean)
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
            sent_at = CASE WHEN woken THEN clock_timestamp() ELSE r.sent_at END,
            dispatches = CASE WHEN woken THEN 0 ELSE r.dispatches END
        WHERE r.id = p_run
        RETURNING r.wake INTO seq;
    END IF;
END $$;

-- What a run's log has got since arrival p_head and commit p_epoch, as [steps, signals]: outcomes, steps that were
-- asked for since, the calls of gathers that have ended since, those of `p_inline` however they are, and signals. Since
-- -1 and -1: all of the chapter.
CREATE OR REPLACE FUNCTION pickaxe.news(
    p_run uuid, p_chapter integer, p_head integer, p_epoch integer, p_inline text[]
) RETURNS json LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN json_build_array((
        SELECT json_agg(json_build_array(
            s.key, s.kind, s.name, s.digest, s.state, s.seq, extract(epoch FROM s.finished_at)::float8,
            s.output, s.error, s.group_key, s.ordinal, s.attempt,
            -- Once it has been dispatched, its due time only says when to do that again. What a person must resolve
            -- has none.
            s.state = 'unknown' AND s.due IS NULL
                OR s.dispatches = 0 AND s.due IS NOT NULL AND s.due > clock_timestamp()
        ))
        FROM pickaxe.step s WHERE s.run_id = p_run AND s.chapter = p_chapter AND (
            s.seq > p_head OR s.born > p_epoch OR s.key = ANY (p_inline) OR s.group_key IN (
                SELECT g.key FROM pickaxe.step g
                WHERE g.run_id = p_run AND g.chapter = p_chapter AND g.kind = 'gather' AND g.seq > p_head))
    ), (
        SELECT json_agg(json_build_array(g.seq, extract(epoch FROM g.created_at)::float8, g.name, g.payload))
        FROM pickaxe.signal g WHERE g.run_id = p_run AND g.chapter = p_chapter AND g.seq > p_head
    ));
END $$;

-- The next call that its gather's cap holds back may run, if there is one and the gather has a cap. The caller holds
-- the row of the call whose place it takes.
CREATE OR REPLACE FUNCTION pickaxe.release_next(p_run uuid, p_group text, p_redispatch double precision) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE released text[];
BEGIN
    -- Locked, so that a place is not given away while another counts those that are taken.
    PERFORM 1 FROM pickaxe.step WHERE run_id = p_run AND key = p_group AND options::jsonb->>'limit' IS NOT NULL
        AND state = 'waiting' FOR UPDATE;
    IF NOT FOUND THEN RETURN '{}'; END IF;
    WITH next AS (
        SELECT key FROM pickaxe.step
        WHERE run_id = p_run AND group_key = p_group AND state = 'blocked'
        ORDER BY index LIMIT 1 FOR UPDATE SKIP LOCKED
    ), freed AS (
        UPDATE pickaxe.step t SET state = CASE WHEN t.kind = 'tool' THEN 'ready' ELSE 'waiting' END,
            due = CASE WHEN t.kind = 'tool' THEN clock_timestamp() + make_interval(secs => p_redispatch) END,
            sent_at = CASE WHEN t.kind = 'tool' THEN clock_timestamp() END
        FROM next WHERE t.run_id = p_run AND t.key = next.key
        RETURNING t.key, t.kind, (t.options::jsonb->>'timeout')::float8 AS timeout
    ), started AS (
        UPDATE pickaxe.run c SET
            due = clock_timestamp() + make_interval(secs => p_redispatch), sent_at = clock_timestamp(),
            deadline = clock_timestamp() + make_interval(secs => freed.timeout)
        FROM freed WHERE freed.kind = 'child' AND c.parent_run = p_run AND c.parent_step = freed.key
            AND c.state = 'ready' AND c.due IS NULL
    )
    SELECT coalesce(array_agg(key), '{}') INTO released FROM freed;
    RETURN released;
END $$;

-- A step ends. Guarded by the states it may come from and, when given, by attempt and owner: a stale owner
-- changes nothing. A plain step arrives at its run; a gathered one is counted once by its gather, and the
-- gather arrives when that decides it. `accepted` tells whether the outcome was taken, `woken` whether the
-- run must be published, `released` the keys of blocked siblings that may now run.
CREATE OR REPLACE FUNCTION pickaxe.settle(
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
        due = NULL, sent_at = NULL, expires = NULL, owner = NULL, reason = NULL, finished_at = clock_timestamp()
        WHERE run_id = p_run AND key = p_key;

    IF fired IS NOT NULL THEN
        SELECT w.seq, w.woken INTO seq, woken FROM pickaxe.wake(p_run, p_redispatch) w;
        UPDATE pickaxe.step SET state = fired, seq = settle.seq, finished_at = clock_timestamp()
            WHERE run_id = p_run AND key = s.group_key;
    ELSIF g.key IS NOT NULL AND o->>'limit' IS NOT NULL AND pickaxe.holds_place(s) THEN
        -- What ended while it had no place had none to pass on.
        released := pickaxe.release_next(p_run, g.key, p_redispatch);
    END IF;
END $$;

-- A reduction is committed: all of it, or nothing if another was committed, or the run was cancelled, since it was
-- loaded. Arrivals that came meanwhile do not undo it, for it holds for all that came before them: the run then is
-- `moved`, stays ready, and is reduced again. `p_steps` is a JSON array of new steps, `p_children` of child runs.
-- `p_arrived` is 1 when an outcome arrives in this very commit (see `advance`), which needs no waking before it.
CREATE OR REPLACE FUNCTION pickaxe.commit_reduction(
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
        -- Whoever has it moved goes on with it himself.
        sent_at = CASE WHEN p_state = 'ready' THEN clock_timestamp() END,
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
            run_id, key, chapter, born, kind, name, digest, state, queue, priority, due, sent_at, expires, total_timeout,
            group_key, index, counted, failed, input, options, owner, ran_by, attempt, started_at)
        SELECT p_run, n.key, r.chapter, r.epoch, n.kind, n.name, n.digest, n.state, n.queue,
            coalesce(n.priority, r.priority),
            CASE
                WHEN n.due IS NOT NULL THEN to_timestamp(n.due)
                WHEN n.due_in IS NOT NULL THEN clock_timestamp() + make_interval(secs => n.due_in)
            END,
            CASE WHEN n.sent THEN clock_timestamp() END,
            clock_timestamp() + make_interval(secs => n.expires_in), n.total_timeout,
            n.group_key, n.index, CASE WHEN n.kind = 'gather' THEN 0 END, CASE WHEN n.kind = 'gather' THEN 0 END,
            n.input, n.options,
            CASE WHEN n.state = 'running' THEN p_owner END, CASE WHEN n.state = 'running' THEN p_owner END,
            (n.state = 'running')::integer, CASE WHEN n.state = 'running' THEN clock_timestamp() END
        FROM json_to_recordset(p_steps) AS n(
            key text, kind text, name text, digest text, state text, queue text, priority smallint,
            due double precision, due_in double precision, sent boolean, expires_in double precision,
            total_timeout double precision, group_key text, index integer, input text, options text);
    END IF;

    IF p_children IS NOT NULL THEN
        INSERT INTO pickaxe.run (id, agent, version, state, queue, priority, due, sent_at, deadline, input,
            parent_run, parent_step, root, metadata)
        SELECT n.id, n.agent, n.version, 'ready', n.queue, coalesce(n.priority, r.priority),
            CASE WHEN NOT n.held THEN clock_timestamp() + make_interval(secs => p_redispatch) END,
            CASE WHEN NOT n.held THEN clock_timestamp() END,
            -- The time of one that is held back begins when it is let go.
            CASE WHEN NOT n.held THEN clock_timestamp() + make_interval(secs => n.timeout) END,
            n.input, p_run, n.step, r.root, r.metadata
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
                AND s.state IN ('blocked', 'ready', 'running', 'waiting', 'unknown', 'quarantined')
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
        UPDATE pickaxe.signal SET chapter = r.chapter
            WHERE run_id = p_run AND (seq = ANY (p_carried) OR seq > p_new_head);
    END IF;
    IF over THEN
        SELECT t.parent, t.woken, t.released INTO parent, parent_woken, released
            FROM pickaxe.report_to_parent(p_run, p_redispatch) t;
    END IF;
END $$;

-- A run is told to stop. Its agent sees a CancelledError as its next arrival and may clean up; a run that
-- has not begun, that is paused, or that is forced ends here and now, with all of its open steps.
CREATE OR REPLACE FUNCTION pickaxe.cancel_run(
    p_run uuid, p_reason text, p_timed_out boolean, p_force boolean, p_error text, p_redispatch double precision,
    OUT known boolean, OUT told boolean, OUT woken boolean, OUT ended boolean,
    OUT parent uuid, OUT parent_woken boolean, OUT released text[], OUT orphans uuid[]
) LANGUAGE plpgsql AS $$
DECLARE
    r pickaxe.run%ROWTYPE;
    s integer;
BEGIN
    told := false; woken := false; ended := false; parent_woken := false; released := '{}'; orphans := '{}';
    IF p_force OR EXISTS (SELECT 1 FROM pickaxe.run t WHERE t.id = p_run AND t.state = 'paused') THEN
        PERFORM pickaxe.lock_gathered(p_run, ARRAY(
            SELECT key FROM pickaxe.step WHERE run_id = p_run
                AND state IN ('blocked', 'ready', 'running', 'waiting', 'unknown', 'quarantined')));
    END IF;
    SELECT * INTO r FROM pickaxe.run WHERE id = p_run FOR UPDATE;
    known := FOUND;
    IF NOT known OR r.state IN ('succeeded', 'failed', 'cancelled') THEN RETURN; END IF;
    IF p_force OR r.state = 'paused' OR r.started_at IS NULL THEN
        ended := true;
        UPDATE pickaxe.run SET
            state = CASE WHEN p_timed_out THEN 'failed' ELSE 'cancelled' END, epoch = epoch + 1, error = p_error,
            reason = NULL, due = NULL, sent_at = NULL, deadline = NULL, cancel_reason = p_reason, timed_out = p_timed_out,
            finished_at = clock_timestamp()
            WHERE id = p_run;
        UPDATE pickaxe.step SET
            state = CASE WHEN kind = 'child' AND (state = 'blocked' OR options::jsonb->>'policy' <> 'detach')
                THEN 'cancelling' ELSE 'cancelled' END,
            due = CASE WHEN kind = 'child' AND (state = 'blocked' OR options::jsonb->>'policy' <> 'detach')
                THEN clock_timestamp() END,
            dispatches = 0, expires = NULL, owner = NULL, finished_at = clock_timestamp()
            WHERE run_id = p_run AND state IN ('blocked', 'ready', 'running', 'waiting', 'unknown', 'quarantined');
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

-- A step that was set aside may run again: because its `reconcile`, run by `p_owner`, found that nothing had happened,
-- or (null) because a person says so, which wipes out what it was charged with and what total time it had. `outcome`:
-- `ready`; `blocked`, when its gather's places are all taken; `quarantined`, when it kills its workers; null, refused.
CREATE OR REPLACE FUNCTION pickaxe.reissue(
    p_run uuid, p_key text, p_attempt integer, p_owner text, p_wait double precision, p_reason text, p_history text,
    p_limit integer, OUT outcome text
) LANGUAGE plpgsql AS $$
DECLARE
    s pickaxe.step%ROWTYPE;
    places integer;
    taken integer;
BEGIN
    SELECT * INTO s FROM pickaxe.step
        WHERE run_id = p_run AND key = p_key AND attempt = p_attempt
            AND CASE WHEN p_owner IS NULL THEN state IN ('unknown', 'quarantined') OR state = 'running' AND reconciling
                ELSE state = 'running' AND reconciling AND owner = p_owner END
        FOR UPDATE;
    IF NOT FOUND THEN RETURN; END IF;
    outcome := 'ready';
    IF p_owner IS NOT NULL AND p_limit > 0 AND s.strikes >= p_limit THEN
        outcome := 'quarantined';
    ELSIF s.group_key IS NOT NULL AND s.options::jsonb->>'inline' IS NULL THEN
        SELECT (options::jsonb->>'limit')::integer INTO places FROM pickaxe.step
            WHERE run_id = p_run AND key = s.group_key AND state = 'waiting' FOR UPDATE;
        SELECT count(*) INTO taken FROM pickaxe.step t
            WHERE t.run_id = p_run AND t.group_key = s.group_key AND t.state IN ('ready', 'running', 'waiting')
                AND NOT t.reconciling;
        IF taken >= places THEN outcome := 'blocked'; END IF;
    END IF;
    UPDATE pickaxe.step SET
        state = outcome, owner = NULL, reconciling = false, sent_at = NULL, dispatches = 0, reason = p_reason,
        history = coalesce(p_history, history),
        due = CASE WHEN outcome = 'ready' THEN clock_timestamp() + make_interval(secs => p_wait) END,
        deaths = CASE WHEN p_owner IS NULL THEN s.attempt ELSE deaths END,
        strikes = CASE WHEN p_owner IS NULL THEN 0 ELSE strikes END,
        total_timeout = CASE WHEN p_owner IS NOT NULL THEN total_timeout END,
        expires = CASE WHEN p_owner IS NOT NULL THEN created_at + make_interval(secs => total_timeout) END
        WHERE run_id = p_run AND key = p_key;
END $$;

-- A reduction begins of which there is reason to believe that the last one killed its worker. `verdict`: `go`, and it
-- is noted who reduces; `wait`, for another process has begun it, and either ends it soon or is found dead; `paused`,
-- for `p_limit` processes (0: never) have died in it at this epoch, which `deaths` lists.
CREATE OR REPLACE FUNCTION pickaxe.suspect_reduction(
    p_run uuid, p_epoch integer, p_owner text, p_limit integer, p_patience double precision, p_reason text,
    OUT verdict text, OUT deaths json
) LANGUAGE plpgsql AS $$
DECLARE died integer;
BEGIN
    DELETE FROM pickaxe.suspect WHERE run_id = p_run AND epoch <> p_epoch;
    SELECT count(*), json_agg(json_build_object(
            'owner', w.name || ' ' || w.pid, 'exit', w.exit, 'started', extract(epoch FROM n.noted_at),
            'died', extract(epoch FROM w.ended_at)) ORDER BY n.noted_at)
        INTO died, deaths
        FROM pickaxe.suspect n JOIN pickaxe.worker w ON w.id = n.owner WHERE n.run_id = p_run AND w.ended = 'died';
    IF p_limit > 0 AND died >= p_limit THEN
        UPDATE pickaxe.run SET
            state = 'paused', epoch = epoch + 1, due = NULL, sent_at = NULL, dispatches = 0, reason = p_reason,
            error = json_build_object('type', 'Quarantined', 'message', p_reason, 'deaths', deaths)
            WHERE id = p_run AND state = 'ready' AND epoch = p_epoch;
        -- It has been reduced or ended since it was loaded: there is nothing to do here.
        verdict := CASE WHEN FOUND THEN 'paused' ELSE 'wait' END;
    ELSIF EXISTS (
        SELECT 1 FROM pickaxe.suspect n JOIN pickaxe.worker w ON w.id = n.owner
        WHERE n.run_id = p_run AND n.owner <> p_owner AND w.ended_at IS NULL
            AND n.noted_at > clock_timestamp() - make_interval(secs => 10 * p_patience)
    ) THEN
        UPDATE pickaxe.run SET
            due = clock_timestamp() + make_interval(secs => p_patience), sent_at = NULL,
            reason = 'a worker process began its reduction and has not ended it'
            WHERE id = p_run AND state = 'ready' AND epoch = p_epoch;
        verdict := 'wait';
    ELSE
        INSERT INTO pickaxe.suspect (run_id, owner, epoch) VALUES (p_run, p_owner, p_epoch)
            ON CONFLICT (run_id, owner) DO UPDATE SET noted_at = clock_timestamp();
        verdict := 'go';
    END IF;
END $$;
