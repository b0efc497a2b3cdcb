-- End the session that holds a lock if it has been silent for too long: its process is frozen, or its host is gone.
SELECT l.pid, pg_terminate_backend(l.pid)
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.classid = :lock_class AND l.objid = :slot AND l.granted
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND a.state = 'idle' AND a.state_change < clock_timestamp() - make_interval(secs => :vanished)
