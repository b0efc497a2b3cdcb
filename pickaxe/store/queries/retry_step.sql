-- An attempt failed and another is due: the step waits as a row, not as a message. With :overdue, only if the
-- attempt's time is (still) up. What failed like that has not killed its worker.
UPDATE pickaxe.step SET
    state = 'ready', owner = NULL, deaths = deaths + :spared, dispatches = 0,
    strikes = CASE WHEN :spared = 0 THEN 0 ELSE strikes END, error = :error, reason = :reason,
    due = clock_timestamp() + make_interval(secs => :wait),
    history = :history
WHERE run_id = :run AND key = :key AND state = 'running' AND attempt = :attempt AND owner = :owner
    AND (NOT :overdue OR due <= clock_timestamp())
RETURNING key
