INSERT INTO pickaxe.worker (id, name, pid, handles, family) VALUES (:id, :name, :pid, :handles, :family)
ON CONFLICT (id) DO UPDATE SET beat_at = clock_timestamp()
RETURNING slot
