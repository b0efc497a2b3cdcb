-- Processes that are gone: their session lock is free and they have not beaten for :dead seconds, or they have
-- not beaten for :vanished seconds whatever the lock says. A database that has just started has no locks at
-- all, so the time it was away counts for nobody, nor do the :found_again seconds it takes to find it again.
-- A process that is only frozen would keep what its tools' transactions have locked, also for calls that are over.
UPDATE pickaxe.worker w SET ended_at = clock_timestamp(), ended = 'died',
    held = (SELECT count(*) FROM pickaxe.step s WHERE s.owner = w.id AND s.state = 'running'),
    suspects = (SELECT count(*) FROM pickaxe.step s WHERE s.owner = w.id AND s.state = 'running' AND s.strikes >= 1)
WHERE w.ended_at IS NULL
    AND greatest(w.beat_at, pg_postmaster_start_time() + make_interval(secs => :found_again))
        < clock_timestamp() - make_interval(secs => :dead)
    AND (
        greatest(w.beat_at, pg_postmaster_start_time() + make_interval(secs => :found_again))
            < clock_timestamp() - make_interval(secs => :vanished)
        OR NOT EXISTS (
            SELECT 1 FROM pg_locks l
            WHERE l.locktype = 'advisory' AND l.classid = :lock_class AND l.objid = w.slot AND l.granted
                AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
    )
RETURNING w.id, w.name, w.pid, ARRAY(
    SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.application_name LIKE 'pickaxe ' || w.id || ' %') AS transactions
