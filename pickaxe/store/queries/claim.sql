-- A worker process takes a step: to run it, or, if an attempt's outcome is unknown, to ask for that. A duplicate or late
-- message finds another state or attempt, and takes nothing; nor does a process that was declared dead, until it has
-- taken a new name. Of the steps that are charged with deaths, a worker runs one at a time. A process that has seen the
-- run up to arrival :seen_head and commit :seen_epoch is told what is new in its log besides (see catch_up.sql).
WITH c AS (
    UPDATE pickaxe.step s SET
        state = 'running', attempt = s.attempt + 1, owner = :owner, ran_by = :owner, dispatches = 0, reason = NULL,
        progress = NULL, started_at = clock_timestamp(),
        due = clock_timestamp() + make_interval(secs => (s.options::jsonb->>'timeout')::float8 + :grace),
        expires = CASE WHEN s.state = 'ready' THEN s.created_at + make_interval(secs => s.total_timeout) END,
        reconciling = s.state = 'unknown', deaths = s.deaths + (s.state = 'unknown')::integer
    FROM pickaxe.run r
    WHERE s.run_id = :run AND s.key = :key AND (s.state = 'ready' OR s.state = 'unknown' AND s.due IS NOT NULL)
        AND s.attempt = :attempt - 1 AND r.id = s.run_id
        AND EXISTS (SELECT 1 FROM pickaxe.worker w WHERE w.id = :owner AND w.ended_at IS NULL)
        AND (s.strikes < 1 OR NOT EXISTS (
            SELECT 1 FROM pickaxe.worker me
                JOIN pickaxe.worker q ON q.id = me.id OR q.family = me.family AND q.family <> ''
                JOIN pickaxe.step o ON o.owner = q.id AND o.state = 'running' AND o.strikes >= 1
            WHERE me.id = :owner AND q.ended_at IS NULL))
    RETURNING s.name AS own_name, s.digest AS own_digest, s.input, s.options, s.attempt AS own_attempt, s.deaths,
        s.group_key AS own_group, s.history, s.strikes, s.reconciling,
        r.agent, r.root, r.queue, r.priority, r.chapter, r.state AS run_state, r.dispatches,
        r.epoch, r.head, r.wake, r.cancel_seq, extract(epoch FROM r.cancel_at)::float8 AS cancelled, r.cancel_reason,
        r.timed_out, extract(epoch FROM s.expires)::float8 AS expires,
        extract(epoch FROM clock_timestamp())::float8 AS now
)
SELECT c.*, n.* FROM c LEFT JOIN LATERAL (
    SELECT 'step' AS tag, key, kind, name, digest, state, seq, extract(epoch FROM finished_at)::float8 AS at,
        output, error, group_key, ordinal, attempt, false AS later
    FROM pickaxe.step WHERE run_id = :run AND chapter = CAST(:seen_chapter AS integer) AND (
        seq > CAST(:seen_head AS integer) OR born > CAST(:seen_epoch AS integer) OR group_key IN (
            SELECT g.key FROM pickaxe.step g
            WHERE g.run_id = :run AND g.chapter = CAST(:seen_chapter AS integer) AND g.kind = 'gather'
                AND g.seq > CAST(:seen_head AS integer)))
    UNION ALL
    SELECT 'signal', '', '', name, '', '', seq, extract(epoch FROM created_at)::float8, payload,
        NULL, NULL, NULL, 0, false
    FROM pickaxe.signal
    WHERE run_id = :run AND chapter = CAST(:seen_chapter AS integer) AND seq > CAST(:seen_head AS integer)
) n ON true
