-- A call that is charged with deaths waits for its turn: a worker runs one of those at a time.
UPDATE pickaxe.step SET
    due = clock_timestamp() + make_interval(secs => 1 + random()), sent_at = NULL, dispatches = 0,
    reason = 'it was in a worker process that died, and waits to run apart from others that were'
WHERE run_id = :run AND key = :key AND state IN ('ready', 'unknown') AND due IS NOT NULL
    AND attempt = :attempt AND strikes >= 1
RETURNING key
