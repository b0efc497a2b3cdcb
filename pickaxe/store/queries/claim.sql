-- A worker process takes a step: to run it, or, if an attempt's outcome is unknown, to ask for that. A duplicate or
-- late message finds another state or attempt, and takes nothing; nor does one to another tool than :name (null: any),
-- whose body has nothing to do with the call, nor a process that was declared dead, until it has taken a new name. Of
-- the steps that are charged with deaths, a worker runs one at a time. If the run's agent is one of :agents, also what
-- the process needs to go on with the run: what is new in its log since arrival :seen_head and commit :seen_epoch of
-- chapter :seen_chapter, or, if these are null, all of it and the run's input besides. The claim of a call that may be
-- repeated is not flushed: the process that loses it in a crash of Postgres makes it again.
UPDATE pickaxe.step s SET
    state = 'running', attempt = s.attempt + 1, owner = :owner, ran_by = :owner, sent_at = NULL, dispatches = 0, reason = NULL,
    progress = NULL, started_at = clock_timestamp(),
    due = clock_timestamp() + make_interval(secs => (s.options::jsonb->>'timeout')::float8 + :grace),
    expires = CASE WHEN s.state = 'ready' THEN s.created_at + make_interval(secs => s.total_timeout) END,
    reconciling = s.state = 'unknown', deaths = s.deaths + (s.state = 'unknown')::integer
FROM pickaxe.run r
WHERE s.run_id = :run AND s.key = :key AND (s.state = 'ready' OR s.state = 'unknown' AND s.due IS NOT NULL)
    AND s.attempt = :attempt - 1 AND r.id = s.run_id AND (CAST(:name AS text) IS NULL OR s.name = :name)
    AND EXISTS (SELECT 1 FROM pickaxe.worker w WHERE w.id = :owner AND w.ended_at IS NULL)
    AND (s.strikes < 1 OR NOT EXISTS (
        SELECT 1 FROM pickaxe.worker me
            JOIN pickaxe.worker q ON q.id = me.id OR q.family = me.family AND q.family <> ''
            JOIN pickaxe.step o ON o.owner = q.id AND o.state = 'running' AND o.strikes >= 1
        WHERE me.id = :owner AND q.ended_at IS NULL))
RETURNING s.name, s.digest, s.input AS arguments, s.options, s.attempt, s.deaths, s.group_key, s.history, s.strikes,
    s.reconciling, extract(epoch FROM s.expires)::float8 AS expires,
    r.id, r.agent, r.version, r.root, r.queue, r.priority, r.parent_run, r.chapter, r.state, r.dispatches,
    r.epoch, r.head, r.wake, r.cancel_seq, extract(epoch FROM r.cancel_at)::float8 AS cancelled, r.cancel_reason,
    r.timed_out, extract(epoch FROM r.chapter_at)::float8 AS started,
    extract(epoch FROM clock_timestamp())::float8 AS now,
    CASE WHEN NOT s.options::jsonb ? 'effect' THEN set_config('synchronous_commit', 'off', true) END,
    CASE WHEN r.agent = ANY (CAST(:agents AS text[])) AND CAST(:seen_chapter AS integer) IS NULL THEN r.input END AS input,
    CASE WHEN r.agent = ANY (CAST(:agents AS text[])) AND s.group_key IS NULL AND r.state IN ('ready', 'waiting')
            AND r.chapter = coalesce(CAST(:seen_chapter AS integer), r.chapter)
            AND (r.wake, r.epoch) IS DISTINCT FROM (CAST(:seen_head AS integer), CAST(:seen_epoch AS integer))
        THEN pickaxe.news(
            r.id, r.chapter, coalesce(CAST(:seen_head AS integer), -1),
            coalesce(CAST(:seen_epoch AS integer), -1), '{}')
    END AS news
