-- An attempt failed and another is due: the step waits as a row, not as a message. With :overdue, only if the
-- attempt's time is (still) up. What failed like that has not killed its worker. With :transaction, the attempt's
-- transaction ends here: its locks would hold up the next attempt.
UPDATE pickaxe.step SET
    state = 'ready', owner = NULL, deaths = deaths + :spared, dispatches = 0,
    strikes = CASE WHEN :spared = 0 THEN 0 ELSE strikes END, error = :error, reason = :reason,
    due = clock_timestamp() + make_interval(secs => :wait),
    history = :history
WHERE run_id = :run AND key = :key AND state = 'running' AND attempt = :attempt AND owner = :owner
    AND (NOT :overdue OR due <= clock_timestamp())
RETURNING key, CASE WHEN CAST(:transaction AS text) IS NOT NULL THEN ARRAY(
    SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.application_name = CAST(:transaction AS text)) END AS transactions
