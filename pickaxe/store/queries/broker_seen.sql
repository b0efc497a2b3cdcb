-- Remember the broker's incarnation; returns the one known before (null: a fresh deployment).
WITH before AS (SELECT incarnation FROM pickaxe.broker WHERE id = 1)
INSERT INTO pickaxe.broker (id, incarnation) VALUES (1, :incarnation)
ON CONFLICT (id) DO UPDATE SET incarnation = excluded.incarnation, seen_at = clock_timestamp()
RETURNING (SELECT incarnation FROM before) AS before
