-- A sign of life, the steps this process still owns, and whether others have died lately, or are about to be found
-- dead. No row: it was declared dead itself.
UPDATE pickaxe.worker SET beat_at = clock_timestamp() WHERE id = :id AND ended_at IS NULL
RETURNING ARRAY(
    SELECT run_id::text || ' ' || attempt::text || ' ' || key FROM pickaxe.step WHERE owner = :id
) AS owned, EXISTS (
    SELECT 1 FROM pickaxe.worker d
    WHERE d.ended = 'died' AND d.ended_at > clock_timestamp() - make_interval(secs => :lately)
        OR d.ended_at IS NULL AND d.beat_at < clock_timestamp() - make_interval(secs => :silent)
) AS losses
