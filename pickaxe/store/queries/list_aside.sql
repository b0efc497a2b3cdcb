-- Steps that wait for somebody to say how they go on, the newest first; of these trees of runs only, if any are given.
SELECT s.*, r.agent, r.root, NULL::uuid AS child, coalesce(w.name || ' ' || w.pid, s.ran_by) AS worker,
    pickaxe.exits(s.history) AS exits
FROM pickaxe.step s JOIN pickaxe.run r ON r.id = s.run_id LEFT JOIN pickaxe.worker w ON w.id = s.ran_by
WHERE s.state IN ('unknown', 'quarantined') AND (CAST(:roots AS uuid[]) IS NULL OR r.root = ANY (:roots))
ORDER BY s.started_at DESC NULLS LAST LIMIT :most
