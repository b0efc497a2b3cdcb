-- A reduction under suspicion has ended, and its process lives.
DELETE FROM pickaxe.suspect WHERE run_id = :run AND owner = :owner
RETURNING run_id
