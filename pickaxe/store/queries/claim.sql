-- A worker process takes a step. A duplicate or late message finds another state or attempt, and takes nothing;
-- nor does a process that was declared dead, until it has taken a new name.
UPDATE pickaxe.step s SET
    state = 'running', attempt = s.attempt + 1, owner = :owner, ran_by = :owner, dispatches = 0, reason = NULL, progress = NULL,
    started_at = clock_timestamp(),
    due = clock_timestamp() + make_interval(secs => (s.options::jsonb->>'timeout')::float8 + :grace),
    expires = s.created_at + make_interval(secs => s.total_timeout)
FROM pickaxe.run r
WHERE s.run_id = :run AND s.key = :key AND s.state = 'ready' AND s.attempt = :attempt - 1 AND r.id = s.run_id
    AND EXISTS (SELECT 1 FROM pickaxe.worker w WHERE w.id = :owner AND w.ended_at IS NULL)
RETURNING s.name, s.digest, s.input, s.options, s.attempt, s.deaths, s.group_key, s.history,
    r.agent, r.root, r.queue, r.priority, r.chapter, r.epoch, r.head, r.wake,
    extract(epoch FROM s.expires)::float8 AS expires, extract(epoch FROM clock_timestamp())::float8 AS now
