-- A paused run goes on, with the code there is now.
UPDATE pickaxe.run SET
    state = 'ready', epoch = epoch + 1, reason = NULL, error = NULL, version = :version, dispatches = 0,
    due = clock_timestamp() + make_interval(secs => :redispatch), sent_at = clock_timestamp()
WHERE id = :run AND state = 'paused'
RETURNING id
