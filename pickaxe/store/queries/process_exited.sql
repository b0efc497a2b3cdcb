-- A worker's main process has seen one of its children end.
UPDATE pickaxe.worker w SET
    exit = :exit, ended_at = coalesce(w.ended_at, clock_timestamp()), ended = coalesce(w.ended, 'died'),
    held = CASE WHEN w.ended_at IS NOT NULL THEN w.held ELSE
        (SELECT count(*) FROM pickaxe.step s WHERE s.owner = w.id AND s.state = 'running') END,
    suspects = CASE WHEN w.ended_at IS NOT NULL THEN w.suspects ELSE
        (SELECT count(*) FROM pickaxe.step s WHERE s.owner = w.id AND s.state = 'running' AND s.strikes >= 1) END
WHERE w.family = :family AND w.pid = :pid AND w.exit IS NULL AND coalesce(w.ended, 'died') = 'died'
RETURNING w.id
