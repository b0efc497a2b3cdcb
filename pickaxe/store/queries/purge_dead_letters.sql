DELETE FROM pickaxe.dead_letter WHERE id IN (
    SELECT d.id FROM pickaxe.dead_letter d WHERE d.created_at < clock_timestamp() - make_interval(secs => :keep)
    LIMIT :batch FOR UPDATE SKIP LOCKED)
RETURNING id
