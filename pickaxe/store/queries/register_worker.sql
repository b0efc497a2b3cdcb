INSERT INTO pickaxe.worker (id, name, pid, handles) VALUES (:id, :name, :pid, :handles) RETURNING slot
