-- A sign of life, and the steps this process still owns. No row: it was declared dead.
UPDATE pickaxe.worker SET beat_at = clock_timestamp() WHERE id = :id AND ended_at IS NULL
RETURNING ARRAY(
    SELECT run_id::text || ' ' || attempt::text || ' ' || key FROM pickaxe.step WHERE owner = :id
) AS owned
