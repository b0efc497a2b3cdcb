-- Calls that have run past their time, whatever their process is doing.
SELECT s.run_id, s.key, s.name, s.attempt, s.deaths, s.owner, s.options, s.history,
    extract(epoch FROM s.started_at)::float8 AS started, extract(epoch FROM clock_timestamp())::float8 AS now
FROM pickaxe.step s
WHERE s.due <= clock_timestamp() AND s.sent_at IS NULL AND s.state = 'running' ORDER BY s.due LIMIT :batch
