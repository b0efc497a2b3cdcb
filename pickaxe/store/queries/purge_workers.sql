DELETE FROM pickaxe.worker WHERE id IN (
    SELECT w.id FROM pickaxe.worker w
    WHERE w.ended_at < clock_timestamp() - make_interval(secs => :keep)
        AND NOT EXISTS (SELECT 1 FROM pickaxe.step s WHERE s.owner = w.id)
    LIMIT :batch FOR UPDATE SKIP LOCKED)
RETURNING id
