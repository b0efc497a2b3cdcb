-- The steps of processes that ended are issued again, under their next attempt.
UPDATE pickaxe.step s SET
    state = 'ready', owner = NULL, deaths = s.deaths + 1, dispatches = 0,
    due = clock_timestamp() + make_interval(secs => least(60, s.deaths * s.deaths)),
    reason = 'the worker process that ran attempt ' || s.attempt || ' died',
    history = left(coalesce(s.history, '[]'), -1) || CASE WHEN s.history IS NULL THEN '' ELSE ',' END
        || json_build_object('attempt', s.attempt, 'owner', w.name || ' ' || w.pid, 'ended', 'died',
            'started', extract(epoch FROM s.started_at), 'at', extract(epoch FROM clock_timestamp())) || ']'
FROM (
    SELECT t.run_id, t.key FROM pickaxe.step t JOIN pickaxe.worker d ON d.id = t.owner
    WHERE t.owner IS NOT NULL AND t.state = 'running' AND d.ended_at IS NOT NULL
    LIMIT :batch FOR UPDATE OF t SKIP LOCKED
) d, pickaxe.worker w
WHERE s.run_id = d.run_id AND s.key = d.key AND s.state = 'running' AND w.id = s.owner AND w.ended_at IS NOT NULL
RETURNING s.run_id, s.key, s.attempt, w.name || ' ' || w.pid AS owner
