DELETE FROM pickaxe.event WHERE id IN (
    SELECT e.id FROM pickaxe.event e WHERE e.created_at < clock_timestamp() - make_interval(secs => :keep)
    LIMIT :batch FOR UPDATE SKIP LOCKED)
RETURNING id
