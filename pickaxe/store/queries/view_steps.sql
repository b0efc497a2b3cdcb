SELECT s.*, c.id AS child, coalesce(w.name || ' ' || w.pid, s.owner) AS worker, pickaxe.exits(s.history) AS exits
FROM pickaxe.step s
    LEFT JOIN pickaxe.run c ON s.kind = 'child' AND c.parent_run = s.run_id AND c.parent_step = s.key
    LEFT JOIN pickaxe.worker w ON w.id = coalesce(s.owner, s.ran_by)
WHERE s.run_id = :run AND (CAST(:key AS text) IS NULL OR s.key = :key)
ORDER BY s.created_at, s.seq NULLS LAST, s.index, s.key
