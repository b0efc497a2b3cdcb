-- The workers that live, and their processes: those that hold their session lock and have beaten within :vanished
-- seconds.
SELECT w.name, w.family, array_agg(w.pid ORDER BY w.started_at) AS pids
FROM pickaxe.worker w
WHERE w.ended_at IS NULL AND w.beat_at > clock_timestamp() - make_interval(secs => :vanished)
    AND EXISTS (
        SELECT 1 FROM pg_locks l
        WHERE l.locktype = 'advisory' AND l.classid = :lock_class AND l.objid = w.slot AND l.granted
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
GROUP BY w.name, w.family
ORDER BY min(w.started_at)
