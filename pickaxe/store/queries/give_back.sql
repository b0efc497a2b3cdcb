-- A process lets go of a call that it owns and does not run: the call is issued again, under its next attempt.
UPDATE pickaxe.step SET
    state = CASE WHEN reconciling THEN 'unknown' ELSE 'ready' END, reconciling = false, owner = NULL,
    deaths = deaths + (NOT reconciling)::integer, dispatches = 0, due = clock_timestamp(),
    reason = 'attempt ' || attempt || ' was lost on its way to its worker process'
WHERE run_id = CAST(:run AS uuid) AND key = :key AND state = 'running' AND attempt = :attempt AND owner = :owner
RETURNING key
