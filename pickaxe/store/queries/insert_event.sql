-- No row: it was published before, and only the answer to that was lost.
INSERT INTO pickaxe.event (id, key, scope, payload) VALUES (:id, :key, :scope, :payload)
ON CONFLICT (id) DO NOTHING
RETURNING id
