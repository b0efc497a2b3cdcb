INSERT INTO pickaxe.worker (id, name, pid, handles) VALUES (:id, :name, :pid, :handles)
ON CONFLICT (id) DO UPDATE SET beat_at = clock_timestamp()
RETURNING slot
