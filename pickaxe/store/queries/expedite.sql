-- The broker has come back empty: everything that should be in it is due now.
WITH runs AS (
    UPDATE pickaxe.run SET due = clock_timestamp(), sent_at = NULL, dispatches = 0
    WHERE due IS NOT NULL AND sent_at IS NOT NULL AND state = 'ready' RETURNING 1
), steps AS (
    UPDATE pickaxe.step SET due = clock_timestamp(), sent_at = NULL, dispatches = 0
    WHERE due IS NOT NULL AND sent_at IS NOT NULL AND state IN ('ready', 'unknown') RETURNING 1
)
SELECT (SELECT count(*) FROM runs) AS runs, (SELECT count(*) FROM steps) AS steps
