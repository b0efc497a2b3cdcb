-- The steps of processes that ended are issued again, under their next attempt.
UPDATE pickaxe.step s SET
    state = 'ready', owner = NULL, deaths = s.deaths + 1, dispatches = 0,
    due = clock_timestamp() + make_interval(secs => least(60, s.deaths * s.deaths)),
    reason = 'the worker process that ran attempt ' || s.attempt || ' died',
    history = left(coalesce(s.history, '[]'), -1) || CASE WHEN s.history IS NULL THEN '' ELSE ',' END
        || json_build_object('attempt', s.attempt, 'owner', d.owner, 'ended', 'died',
            'started', extract(epoch FROM s.started_at), 'at', extract(epoch FROM clock_timestamp())) || ']'
FROM (
    SELECT t.run_id, t.key, t.owner AS id, coalesce(w.name || ' ' || w.pid, t.owner) AS owner
    FROM pickaxe.step t LEFT JOIN pickaxe.worker w ON w.id = t.owner
    WHERE t.owner IS NOT NULL AND t.state = 'running' AND (w.id IS NULL OR w.ended_at IS NOT NULL)
    LIMIT :batch FOR UPDATE OF t SKIP LOCKED
) d
WHERE s.run_id = d.run_id AND s.key = d.key AND s.state = 'running' AND s.owner = d.id
RETURNING s.run_id, s.key, s.attempt, d.owner
