-- Calls that did not start, or did not end, within their schedule or total time.
SELECT run_id, key, name, state, attempt, owner, options, history, started_at IS NULL AS unstarted
FROM pickaxe.step WHERE expires <= clock_timestamp() ORDER BY expires LIMIT :batch
