-- The broker has come back empty: everything that should be in it is due now.
WITH runs AS (
    UPDATE pickaxe.run SET due = clock_timestamp(), dispatches = 0
    WHERE state = 'ready' AND due > clock_timestamp() AND dispatches > 0 RETURNING 1
), fresh AS (
    UPDATE pickaxe.run SET due = clock_timestamp()
    WHERE state = 'ready' AND due > clock_timestamp() AND dispatches = 0
        AND due < clock_timestamp() + make_interval(secs => :base) RETURNING 1
), steps AS (
    UPDATE pickaxe.step SET due = clock_timestamp(), dispatches = 0
    WHERE state IN ('ready', 'unknown') AND due > clock_timestamp() AND dispatches > 0 RETURNING 1
), fresh_steps AS (
    UPDATE pickaxe.step SET due = clock_timestamp()
    WHERE state = 'ready' AND due > clock_timestamp() AND dispatches = 0
        AND reason IS NULL AND due < clock_timestamp() + make_interval(secs => :base) RETURNING 1
)
SELECT (SELECT count(*) FROM runs) + (SELECT count(*) FROM fresh) AS runs,
    (SELECT count(*) FROM steps) + (SELECT count(*) FROM fresh_steps) AS steps
