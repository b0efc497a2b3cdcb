-- Steps that are set aside. Locks are taken as in 0001: the step's own row, then its gather's.

-- Whether a call takes up one of its gather's places: not if it was never let in, or has been set aside since.
CREATE FUNCTION pickaxe.holds_place(s pickaxe.step) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT s.state NOT IN ('blocked', 'unknown', 'quarantined') AND NOT s.reconciling
$$;

CREATE FUNCTION pickaxe.appended(p_history text, p_entry json) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN coalesce(p_history, '[]') = '[]' THEN '[' ELSE left(p_history, -1) || ',' END || p_entry || ']'
$$;

-- How the processes in a history ended, by their ids, as far as their parents have reported it: that may come later.
CREATE FUNCTION pickaxe.exits(p_history text) RETURNS json LANGUAGE sql STABLE AS $$
    SELECT json_object_agg(w.id, w.exit) FROM pickaxe.worker w
    WHERE w.exit IS NOT NULL AND w.id IN (SELECT past->>'process' FROM json_array_elements(p_history::json) past)
$$;

-- A running attempt ends without an outcome, and its step is set aside: `unknown` or `quarantined`. `p_spared` attempts
-- cost none of its tries. `p_due_in`: when a `reconcile` is due (null: a person decides). With `p_overdue`, only if the
-- attempt's time is (still) up. Its gather, if it has a cap, gives its place to another.
CREATE FUNCTION pickaxe.set_step_aside(
    p_run uuid, p_key text, p_attempt integer, p_owner text, p_state text, p_due_in double precision,
    p_spared integer, p_error text, p_reason text, p_history text, p_overdue boolean, p_redispatch double precision,
    OUT accepted boolean, OUT released text[]
) LANGUAGE plpgsql AS $$
DECLARE s pickaxe.step%ROWTYPE;
BEGIN
    released := '{}';
    SELECT * INTO s FROM pickaxe.step
        WHERE run_id = p_run AND key = p_key AND state = 'running' AND attempt = p_attempt AND owner = p_owner
            AND (NOT p_overdue OR least(due, expires) <= clock_timestamp())
        FOR UPDATE;
    accepted := FOUND;
    IF NOT FOUND THEN RETURN; END IF;
    UPDATE pickaxe.step SET
        state = p_state, owner = NULL, reconciling = false, deaths = deaths + p_spared, dispatches = 0,
        due = clock_timestamp() + make_interval(secs => p_due_in),
        -- Whether it happened does not become known by waiting: no timeout may say that it failed.
        expires = CASE WHEN p_state = 'unknown' THEN NULL ELSE expires END,
        error = coalesce(p_error, error), reason = p_reason, history = coalesce(p_history, history)
        WHERE run_id = p_run AND key = p_key;
    IF s.group_key IS NOT NULL AND pickaxe.holds_place(s) THEN
        released := pickaxe.release_next(p_run, s.group_key, p_redispatch);
    END IF;
END $$;

-- A step that was set aside may run again: because its `reconcile`, run by `p_owner`, found that nothing had happened,
-- or (null) because a person says so, which wipes out what it was charged with and what total time it had. `outcome`:
-- `ready`; `blocked`, when its gather's places are all taken; `quarantined`, when it kills its workers; null, refused.
CREATE FUNCTION pickaxe.reissue(
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
        state = outcome, owner = NULL, reconciling = false, dispatches = 0, reason = p_reason, history = coalesce(p_history, history),
        due = CASE WHEN outcome = 'ready' THEN clock_timestamp() + make_interval(secs => p_wait) END,
        deaths = CASE WHEN p_owner IS NULL THEN s.attempt ELSE deaths END,
        strikes = CASE WHEN p_owner IS NULL THEN 0 ELSE strikes END,
        total_timeout = CASE WHEN p_owner IS NOT NULL THEN total_timeout END,
        expires = CASE WHEN p_owner IS NOT NULL THEN created_at + make_interval(secs => total_timeout) END
        WHERE run_id = p_run AND key = p_key;
END $$;

-- A person says how a step that was set aside has ended. `p_entry` is kept in its history. See `settle`.
CREATE FUNCTION pickaxe.resolve(
    p_run uuid, p_key text, p_from text[], p_attempt integer, p_state text, p_output text, p_error text, p_entry json,
    p_redispatch double precision,
    OUT accepted boolean, OUT woken boolean, OUT seq integer, OUT released text[]
) LANGUAGE plpgsql AS $$
DECLARE gathered text;
BEGIN
    accepted := false; woken := false; released := '{}';
    -- The locks of `settle`, in its order.
    SELECT group_key INTO gathered FROM pickaxe.step WHERE run_id = p_run AND key = p_key;
    IF gathered IS NULL THEN
        PERFORM 1 FROM pickaxe.run WHERE id = p_run FOR UPDATE;
    END IF;
    UPDATE pickaxe.step SET history = pickaxe.appended(history, p_entry)
        WHERE run_id = p_run AND key = p_key AND state = ANY (p_from) AND attempt = p_attempt;
    IF NOT FOUND THEN RETURN; END IF;
    SELECT t.accepted, t.woken, t.seq, t.released INTO accepted, woken, seq, released FROM pickaxe.settle(
        p_run, p_key, p_from, p_attempt, NULL, p_state, p_output, p_error, p_redispatch) t;
END $$;

-- Whether a step is to be charged in full with the death of the process it ran in: it was the only thing running
-- there, or the only one that had been charged before. "There" is whatever died together: the processes of one worker
-- that fell silent within `p_together` seconds. Where a parent has seen its child die, nothing else has.
CREATE FUNCTION pickaxe.is_to_blame(s pickaxe.step, w pickaxe.worker, p_together double precision) RETURNS boolean
LANGUAGE sql STABLE AS $$
    WITH dead AS (
        SELECT q.id,
            CASE WHEN q.ended_at IS NOT NULL THEN q.held ELSE
                (SELECT count(*) FROM pickaxe.step o WHERE o.owner = q.id AND o.state = 'running') END AS held,
            CASE WHEN q.ended_at IS NOT NULL THEN q.suspects ELSE
                (SELECT count(*) FROM pickaxe.step o
                    WHERE o.owner = q.id AND o.state = 'running' AND o.strikes >= 1) END AS suspects
        FROM pickaxe.worker q
        WHERE q.id = w.id OR q.family = w.family AND q.family <> '' AND (
            -- Not one that had died before this attempt began: that was this step's own doing, or nobody's here.
            q.ended = 'died' AND q.ended_at > s.started_at
                AND abs(extract(epoch FROM q.beat_at - w.beat_at)) <= p_together
            OR q.ended_at IS NULL AND w.exit IS NULL
                AND q.beat_at <= w.beat_at + make_interval(secs => p_together))
    ), noted AS (
        SELECT count(*) AS reductions FROM pickaxe.suspect n JOIN dead ON dead.id = n.owner
            JOIN pickaxe.run r ON r.id = n.run_id AND r.epoch = n.epoch
    )
    SELECT sum(dead.held) + max(noted.reductions) <= 1
        OR s.strikes >= 1 AND sum(dead.suspects) + max(noted.reductions) <= 1
    FROM dead, noted
$$;

-- How many processes in a row a step's `reconcile` was to blame for, up to now.
CREATE FUNCTION pickaxe.deaths_in_reconcile(p_history text) RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    WITH past AS (
        SELECT n, coalesce((entry->>'reconciling')::boolean AND (entry->>'alone')::boolean, false) AS died
        FROM json_array_elements(coalesce(p_history, '[]')::json) WITH ORDINALITY AS e(entry, n)
    )
    SELECT count(*)::integer FROM past WHERE died AND n > coalesce((SELECT max(n) FROM past WHERE NOT died), 0)
$$;

-- The steps of processes that ended are issued again, or set aside: as `unknown` those that may only run once, as
-- `quarantined` those that are charged with `p_limit` deaths in a row (0: never). A process that ended in good order
-- charges nobody. A death shared with others counts a half, and can make a suspect of a step, but no more.
CREATE FUNCTION pickaxe.reclaim(
    p_batch integer, p_limit integer, p_together double precision, p_redispatch double precision
) RETURNS TABLE (
    run_id uuid, key text, name text, attempt integer, id text, owner text, exit text, state text, reason text,
    strikes real, effect text, released text[]
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    d record;
    s pickaxe.step%ROWTYPE;
    w pickaxe.worker%ROWTYPE;
    full_charge boolean;
    asks boolean;
BEGIN
    FOR d IN
        SELECT t.run_id AS run, t.key AS step FROM pickaxe.step t LEFT JOIN pickaxe.worker o ON o.id = t.owner
        WHERE t.owner IS NOT NULL AND t.state = 'running' AND (o.id IS NULL OR o.ended_at IS NOT NULL)
        ORDER BY t.run_id, t.group_key, t.key LIMIT p_batch FOR UPDATE OF t SKIP LOCKED
    LOOP
        SELECT * INTO s FROM pickaxe.step t WHERE t.run_id = d.run AND t.key = d.step;
        SELECT * INTO w FROM pickaxe.worker o WHERE o.id = s.owner;
        run_id := s.run_id; key := s.key; name := s.name; attempt := s.attempt; id := s.owner; exit := w.exit;
        owner := coalesce(w.name || ' ' || w.pid, s.owner);
        effect := coalesce(s.options::jsonb->>'effect', 'idempotent');
        asks := s.options::jsonb->>'reconcile' IS NOT NULL;
        strikes := s.strikes; full_charge := false;
        IF w.ended = 'died' THEN
            full_charge := pickaxe.is_to_blame(s, w, p_together);
            strikes := CASE
                -- A reconcile is no reason to keep its tool's body from running.
                WHEN s.reconciling THEN greatest(s.strikes, 1)
                WHEN full_charge THEN s.strikes + 1
                ELSE greatest(s.strikes, least(s.strikes + 0.5, greatest(p_limit - 1, 1))) END;
        END IF;
        reason := 'the worker process that ran attempt ' || s.attempt || ' died';
        state := 'ready';
        IF effect = 'at_most_once' THEN
            state := 'unknown';
            IF s.reconciling AND full_charge AND p_limit > 0
                AND pickaxe.deaths_in_reconcile(s.history) + 1 >= p_limit THEN
                asks := false;
                reason := 'its reconcile kills the worker processes that run it';
            END IF;
            reason := reason || ': whether its effect happened is not known';
        ELSIF full_charge AND p_limit > 0 AND strikes >= p_limit THEN
            state := 'quarantined';
            reason := 'it kills the worker processes that run it: attempt ' || s.attempt || ' was the last of them';
        END IF;
        UPDATE pickaxe.step t SET
            state = reclaim.state, owner = NULL, reconciling = false, strikes = reclaim.strikes,
            deaths = t.deaths + (NOT t.reconciling)::integer, dispatches = 0, reason = reclaim.reason,
            due = CASE WHEN reclaim.state = 'ready' OR reclaim.state = 'unknown' AND asks
                THEN clock_timestamp() + make_interval(secs => least(60, t.deaths * t.deaths)) END,
            expires = CASE WHEN reclaim.state <> 'unknown' THEN t.expires END,
            history = pickaxe.appended(t.history, json_build_object(
                'attempt', t.attempt, 'owner', reclaim.owner, 'process', s.owner, 'ended', 'died', 'exit', w.exit, 'alone', full_charge,
                'reconciling', s.reconciling,
                'started', extract(epoch FROM t.started_at), 'died', extract(epoch FROM w.ended_at),
                'at', extract(epoch FROM clock_timestamp())))
            WHERE t.run_id = d.run AND t.key = d.step;
        released := '{}';
        IF effect = 'transactional' THEN
            -- A process that is only frozen keeps its transaction open, and with it the locks that the next attempt needs.
            PERFORM pg_terminate_backend(a.pid) FROM pg_stat_activity a
                WHERE a.datname = current_database() AND a.application_name LIKE 'pickaxe ' || s.owner || ' %';
        END IF;
        IF state <> 'ready' AND s.group_key IS NOT NULL AND pickaxe.holds_place(s) THEN
            released := pickaxe.release_next(s.run_id, s.group_key, p_redispatch);
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- A reduction begins of which there is reason to believe that the last one killed its worker. `verdict`: `go`, and it is
-- noted who reduces; `wait`, for another process has begun it, and either ends it soon or is found dead; `paused`, for
-- `p_limit` processes (0: never) have died in it at this epoch, which `deaths` lists.
CREATE FUNCTION pickaxe.suspect_reduction(
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
            state = 'paused', epoch = epoch + 1, due = NULL, dispatches = 0, reason = p_reason,
            error = json_build_object('type', 'Quarantined', 'message', p_reason, 'deaths', deaths)
            WHERE id = p_run AND state = 'ready' AND epoch = p_epoch;
        verdict := 'paused';
    ELSIF EXISTS (
        SELECT 1 FROM pickaxe.suspect n JOIN pickaxe.worker w ON w.id = n.owner
        WHERE n.run_id = p_run AND n.owner <> p_owner AND w.ended_at IS NULL
            AND n.noted_at > clock_timestamp() - make_interval(secs => 10 * p_patience)
    ) THEN
        UPDATE pickaxe.run SET
            due = clock_timestamp() + make_interval(secs => p_patience),
            reason = 'a worker process began its reduction and has not ended it'
            WHERE id = p_run AND state = 'ready' AND epoch = p_epoch;
        verdict := 'wait';
    ELSE
        INSERT INTO pickaxe.suspect (run_id, owner, epoch) VALUES (p_run, p_owner, p_epoch)
            ON CONFLICT (run_id, owner) DO UPDATE SET noted_at = clock_timestamp();
        verdict := 'go';
    END IF;
END $$;
